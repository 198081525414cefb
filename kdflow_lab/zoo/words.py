"""The words that the tasks are made of.

All are short, so that the zoo's small tokenizer keeps each of them (with its leading space) as one
token: a tiny model copies single tokens long before it can copy spelled-out words.
"""

from __future__ import annotations

LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")

NAMES = tuple(
    "Ann Bob Eve Tom Liz Max Ida Leo Amy Ben Zoe Ian Kim Lea Jon Mia Nils Olga Paul Rosa Sam "
    "Tina Uma Vera Walt Yan Cleo Dora Emil Finn Gina Hugo Ivan June Karl Lars".split()
)

CITIES = tuple(
    "Oslo Rome Paris Lima Cairo Delhi Tokyo Milan Bern Riga Prague Seoul Quito Accra Hanoi "
    "Kyoto Porto Lyon Turin Graz Split Basel Dakar Tunis Malmo Perth Osaka Sofia Vienna "
    "Dublin".split()
)

THINGS = tuple(
    "lamp cup hat key fox cat dog pen map bell coin drum boat rope shoe ring book cake fish "
    "goat harp kite leaf moon nest owl pear quilt rug sock tent vase wolf yarn axe bag crow "
    "desk egg fan glove horn ink jug knot lute mask nut oven pipe rake sail tray urn wheel bird "
    "clock plum seed broom chair".split()
)

MONTHS = tuple(
    "January February March April May June July August September October November December".split()
)

ORDINALS = ("first", "second", "third")
