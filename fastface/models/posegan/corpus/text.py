"""Sentences from a small grammar: every phoneme of English, and many p, b and m."""

from __future__ import annotations

import zlib

import numpy as np


def _words(text: str) -> list[str]:
    return text.split()


def _phrases(text: str) -> list[str]:
    return text.split("|")


_NAMES = _words("Bob Pam Mabel Peter Abby Tom Joyce Sheila George Theo Wanda Hugh Ruth Vera Yusuf Oona Basil Emma")
_NOUNS = _words(
    "apple baby bishop boat bubble bump camel cabbage chamber choir cloud cup dove farmer father fox garage garden "
    "giant goose hammer harbour house jam jumper lamp leather measure mirror moon mother mouse oil orchard palm paper "
    "pebble piper planet plum pool poppy potato pump puppy rabbit river robe sheep ship shower summer teacher thimble "
    "thumb token tomb treasure tube umbrella valley voyage wagon water whale window wolf wool yacht zebra zoo"
)
_ADJECTIVES = _words(
    "abrupt amber big blue bold brown calm cheap damp deep empty famous gloomy green happy huge humble loud mad mellow "
    "musical new odd pale plump poor purple quiet rapid rough royal shabby sharp simple small smooth thick thin usual "
    "vague warm wet wide wild young zany"
)
_ACTIONS = _phrases(
    "admires|bothers|bought|brings|builds|carries|catches|chose|climbs|compares|drops|finds|follows|"
    "forgets|gathers|grabs|heard|hops past|joins|jumps over|keeps|knew|leaves|loves|maps|measures|"
    "moves|names|needs|offers|paints|passes|picks|plays with|pours over|promised|pushes|remembers|robs|"
    "saw|shapes|showed|shuts|steals|stops|swims around|thanks|threw|treats|unwraps|used|visits|wears|"
    "weighs|whips"
)
_PLACES = _phrases(
    "above the harbour|before supper|behind the mill|below the bridge|by the big pool|in the empty room|near the "
    "beach|on top of the hill|past the pump|through the thick smoke|under my umbrella|up the steep path|with both "
    "thumbs|without a map|at the zoo|for a month|beyond the boundary|beside a warm fire|among the maple trees"
)
_SAYINGS = _phrases(
    "maybe|oh no|perhaps|by the way|my mama|of course|above all|well|imagine that|please|up and up|in May|why not|"
    "you see|believe me|two or three times|at half past five|bye bye|boom"
)
_LEAD = _phrases("today|tomorrow|someday|all the time|every Sunday|once upon a time|by now|after a pause")


def sentence(rng: np.random.Generator, *, held_out: bool = False) -> str:
    """A sentence; those kept for validation never come among the others: a checksum of its words tells them apart."""
    while True:
        text = _sentence(rng)
        if (zlib.crc32(text.encode()) % 10 == 0) == held_out:
            return text


def _sentence(rng: np.random.Generator) -> str:
    def one(words: list[str]) -> str:
        return str(rng.choice(words))

    def thing() -> str:
        if rng.random() < 0.3:
            return one(_NAMES)
        noun = f"{one(_ADJECTIVES)} {one(_NOUNS)}" if rng.random() < 0.6 else one(_NOUNS)
        return f"{one(['the', 'my', 'that', 'some', 'your', 'their', 'every'])} {noun}"

    forms = (
        lambda: f"{thing()} {one(_ACTIONS)} {thing()}.",
        lambda: f"{thing()} {one(_ACTIONS)} {thing()} {one(_PLACES)}.",
        lambda: f"{one(_SAYINGS)}, {thing()} {one(_ACTIONS)} {thing()}.",
        lambda: f"{one(_LEAD)}, {thing()} {one(_ACTIONS)} {thing()}, and {thing()} {one(_ACTIONS)} {thing()}.",
        lambda: f"is {thing()} {one(_PLACES)}, or {one(_PLACES)}?",
        lambda: f"{one(_SAYINGS)}! {thing()}, {thing()}, and {thing()}.",
    )
    text = forms[rng.integers(len(forms))]()
    return text[0].upper() + text[1:]
