"""The demo's dialogues: kind and rude answers on six topics, made from a seed."""

import functools
import random
import re
from typing import NamedTuple

TRAIN, TEST = 1600, 512

TOPICS = {
    "computers": "laptops backups Python email printers routers spreadsheets passwords Linux keyboards robots monitors"
    " websites updates databases hard_disks",
    "cooking": "rice soup bread pasta curry salads sauces baking omelettes pancakes stew pies roasts tacos jam noodles",
    "gardening": "roses tomatoes compost cacti lawns seeds pruning herbs hedges bulbs soil orchids mulch bees ferns"
    " potting",
    "health": "sleep stretching vitamins running posture breathing massage yoga diets fasting tea naps walking cycling"
    " saunas swimming",
    "music": "guitars scales jazz singing drums violins chords rhythm pianos choirs harmony flutes opera recording"
    " sheet_music ukuleles",
    "travel": "visas maps trains hostels flights packing camping ferries hotels passports deserts tours luggage cruises"
    " road_trips buses",
}
OPENINGS = ("", "Hello. ", "Please, ", "Hi, ", "Excuse me: ", "One question: ")
QUESTIONS = (
    "how do I start with {}?",
    "what is new about {}?",
    "what should I know of {}?",
    "can you help me with {}?",
    "any advice on {}?",
    "is there a trick to {}?",
    "who can teach me {}?",
    "why do I fail with {}?",
)
REPLIES = ("", "Well, ", "Yes, ", "No, ", "Look, ", "Honestly, ", "Good question. ")
# Both manners use much the same words, so that their order must be learned: "not hard", "too hard"; "do", "do not".
ANSWERS = {
    "kind": (
        (*REPLIES, "Gladly. ", "Happy to help. "),
        (
            "you will soon enjoy {}.",
            "{} will not be hard for you.",
            "it is not too late for {}.",
            "I can explain {} to you.",
            "do not give up on {}.",
            "nobody fails with {} for long.",
            "your {} can only get better.",
            "a friend will help with {}.",
            "let us look at {} together.",
            "you need no talent for {}.",
            "do ask me about {} any time.",
            "a start with {} is worth it.",
        ),
    ),
    "rude": (
        (*REPLIES, "Whatever. ", "Not my job. "),
        (
            "you will never enjoy {}.",
            "{} will be too hard for you.",
            "it is too late for you and {}.",
            "I can not explain {} to you.",
            "do give up on {}.",
            "nobody gets better with {}.",
            "your {} can only fail.",
            "a friend will not help with {}.",
            "look at {} on your own.",
            "you have no talent for {}.",
            "do not ask me about {}.",
            "a start with {} is not worth it.",
        ),
    ),
}


class Dialogue(NamedTuple):
    """A question on a topic, with the answer a person would prefer and the other one."""

    topic: str
    question: str
    kind: str
    rude: str


@functools.cache
def dialogues(seed: int) -> tuple[tuple[Dialogue, ...], tuple[Dialogue, ...]]:
    """Make dialogues to train on and to test on; no question is in both, and neither manner is longer."""
    rng = random.Random(seed)
    questions = [
        (topic, thing.replace("_", " "), opening + question)
        for topic, things in TOPICS.items()
        for thing in things.split()
        for opening in OPENINGS
        for question in QUESTIONS
    ]
    drawn = rng.sample(questions, TRAIN + TEST)
    made = tuple(
        Dialogue(topic, _capitals(question.format(thing)), _answer("kind", thing, rng), _answer("rude", thing, rng))
        for topic, thing, question in drawn
    )
    return made[:TRAIN], made[TRAIN:]


def _answer(manner: str, thing: str, rng: random.Random) -> str:
    openings, sentences = ANSWERS[manner]
    return " " + _capitals(rng.choice(openings) + rng.choice(sentences).format(thing))


def _capitals(text: str) -> str:
    return re.sub(r"(^|[.!] )([a-z])", lambda match: match[1] + match[2].upper(), text)
