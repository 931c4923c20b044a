"""Mathematics of the unit sphere: geometry (`geometry`) and the von Mises-Fisher law (`vmf`)."""
