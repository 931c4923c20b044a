"""The terms of the reports, explained for a reader who has never seen the code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Term:
    """words: a regular expression for the forms of the term in a text."""

    name: str
    words: str
    meaning: str

    @property
    def key(self) -> str:
        """The anchor of the term's entry on the page."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")


TERMS = (
    Term(
        "bits per byte", r"bits per byte",
        "How many bits the model needs for a byte of text. Lower is better. It doesn't depend on the tokenizer, so it "
        "compares any two models of the same text.",
    ),
    Term(
        "perplexity", r"perplexit(?:y|ies)",
        "The number of equally likely tokens (or words) that would be as hard to guess as the text is. Lower is "
        "better, and 1 is certainty.",
    ),
    Term("nat", r"nats?", "The unit of −log p with the natural logarithm: 1 nat is 1.44 bits."),
    Term(
        "token", r"tokens?",
        "A piece of text, often a part of a word. The model reads and predicts text one token at a time.",
    ),
    Term(
        "trigram", r"trigram",
        "A simple baseline without a neural network: it predicts each token from the two before it by counting "
        "(interpolated Kneser–Ney smoothing).",
    ),
    Term(
        "energy", r"energy|energies",
        "E(v|c) = −log p(v|c): how badly token v fits the context c, in nats. The lower the energy, the likelier the "
        "token.",
    ),
    Term("p(v|c)", r"p\(v\|c\)", "The exact probability that the model gives to token v after the context c."),
    Term("epoch", r"epochs?", "One pass over the whole training text."),
    Term(
        "context and stride", r"context / stride|stride",
        "Likelihood is computed in windows. Each predicted token sees at most "
        "as many tokens before it as the context says; windows start one stride apart.",
    ),
    Term(
        "Langevin", r"Langevin",
        "A random walk that prefers low energy. Here it moves points over a sphere to find the next token.",
    ),
    Term("chain", r"chains?", "One random walk of a sampler. The points where chains end are the samples."),
    Term(
        "kinetic temperature", r"kinetic temperature",
        "How fast the points of Langevin chains move: the mean of |v|² / (d − 1). If the integrator is right, it "
        "equals the temperature that was asked for.",
    ),
    Term(
        "score", r"score",
        "The gradient of a log-density: the direction in which a point becomes more likely. Denoising trains it, and "
        "Langevin chains follow it.",
    ),
    Term(
        "denoising", r"[Dd]enois\w+",
        "Finding a token's point again after noise has moved it. Its error is relative: an answer of zero scores 1, a "
        "perfect answer 0.",
    ),
    Term(
        "κ_c", r"κ_c",
        "√(2 d ln V), the noise level at which a token becomes visible through the noise; d is the number of "
        "dimensions and V the number of tokens in the vocabulary.",
    ),
    Term("κ", r"κ", "Concentration: how tightly points gather around a direction. A large κ means little noise."),
    Term(
        "unigram Bayes denoiser", r"unigram Bayes denoiser",
        "The best possible denoiser that knows how often each token occurs, but ignores the context.",
    ),
    Term(
        "splat", r"[Ss]plats?",
        "A remembered region of contexts: a direction μ on the sphere, a width (concentration κ), and the tokens that "
        "followed there.",
    ),
    Term(
        "consolidation", r"[Cc]onsolidat\w+",
        "Turning recently read contexts into splats during training: splats are created, split, merged and pruned.",
    ),
    Term(
        "φ (phi)", r"φ|phi",
        "For splats: the share of contexts that none explains; consolidation creates splats while φ is above a "
        "threshold. For --model infinito: a part of the loss, small if the network's units depend on each other.",
    ),
    Term("coverage", r"[Cc]overage|cover", "The mean share of contexts that the splats explain."),
    Term(
        "Gini coefficient", r"Gini",
        "A measure of inequality: 0 if all are used equally, close to 1 if a few get everything.",
    ),
    Term(
        "gate", r"gates?",
        "A small trained function that decides, token by token, how much the memory counts beside the model.",
    ),
    Term(
        "tier", r"tiers?",
        "A kind of memory: static splats built from a text, or an episodic store of what was just read.",
    ),
    Term(
        "calibrated", r"[Cc]alibrated|calibration",
        "The model without memory, its probabilities made flatter or sharper by a gate. A memory has to beat this.",
    ),
    Term(
        "expert", r"experts?",
        "One of several small networks in a layer. A router sends each token to the experts that suit it.",
    ),
    Term("attention head", r"heads?", "A part of a layer that decides which earlier tokens to look at."),
    Term("entropy", r"entropy|entropies", "How spread out a distribution is: 0 nats if one choice has all of it."),
    Term("slot", r"slots?", "A place of infinito's external memory to which tokens can be written."),
    Term("χ² test", r"χ²", "A test of whether counts could have come from given probabilities."),
    Term(
        "p-value", r"p-values?|least p",
        "How often chance alone would give a result at least this extreme. A small one speaks against chance.",
    ),
    Term(
        "total variation", r"total variation|TV",
        "The largest difference between the probabilities that two laws give to the same event; 0 if they agree.",
    ),
    Term("sampler", r"samplers?", "A method that draws the next token."),
    Term("repetition", r"repetition", "The share of tokens that repeat a sequence from shortly before."),
    Term("distinct-n", r"distinct-[n123]", "The number of different sequences of n tokens, divided by all of them."),
)  # fmt: skip
_ANY = re.compile("|".join(rf"(?P<t{i}>(?<![\w-])(?:{term.words})(?!\w))" for i, term in enumerate(TERMS)))


def found(text: str) -> Iterator[tuple[str, Term | None]]:
    """A text in pieces; a piece that names a term comes with that term."""
    done = 0
    for match in _ANY.finditer(text):
        assert match.lastgroup is not None
        yield text[done : match.start()], None
        yield match[0], TERMS[int(match.lastgroup[1:])]
        done = match.end()
    yield text[done:], None


def used(texts: Iterator[str]) -> list[Term]:
    """The terms that appear in some texts, in the order of `TERMS`."""
    seen = {term.name for text in texts for _, term in found(text) if term}
    return [term for term in TERMS if term.name in seen]
