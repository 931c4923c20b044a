"""Mathematics of the unit sphere: geometry (`geometry`) and the von Mises-Fisher law (`vmf`), with
the critical concentration kappa_c (`vmf.kappa_critical`).
"""
