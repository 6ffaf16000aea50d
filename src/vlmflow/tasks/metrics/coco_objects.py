"""Words for COCO's 80 object categories, for CHAIR."""

from __future__ import annotations

import re

SYNONYMS = {
    "person": "person, man, woman, boy, girl, child, kid, baby, toddler, infant, adult, lady, "
    "guy, gentleman, teenager, male, female, mother, father, sister, brother, son, daughter, "
    "bride, groom, player, baseball player, batter, catcher, pitcher, umpire, athlete, skier, "
    "snowboarder, skateboarder, skater, surfer, swimmer, rider, biker, bicyclist, cyclist, "
    "motorcyclist, jockey, cowboy, driver, pilot, passenger, pedestrian, tourist, traveler, "
    "shopper, vendor, worker, chef, baker, waiter, waitress, farmer, fisherman, policeman, "
    "cop, officer, soldier, fireman, firefighter, doctor, nurse, student, teacher, "
    "businessman, businesswoman, spectator",
    "bicycle": "bicycle, bike, tricycle",
    "car": "car, automobile, sedan, suv, minivan, van, taxi, taxicab, cab, jeep, hatchback, "
    "convertible, limousine, limo, police car, sports car, station wagon, race car",
    "motorcycle": "motorcycle, motorbike, motor bike, motor cycle, moped, scooter, motor "
    "scooter, dirt bike",
    "airplane": "airplane, aeroplane, plane, jet, aircraft, jetliner, airliner, biplane, "
    "seaplane, fighter jet, passenger jet, passenger plane, jumbo jet, jet plane",
    "bus": "bus, minibus, trolley bus, tour bus, city bus, school bus, double decker bus",
    "train": "train, locomotive, tram, trolley, streetcar, steam engine, passenger train, "
    "freight train, subway train, subway car, train car, train engine",
    "truck": "truck, pickup, lorry, semi, pickup truck, fire truck, firetruck, fire engine, "
    "dump truck, tow truck, food truck, garbage truck, semi truck, tractor trailer",
    "boat": "boat, ship, sailboat, sail boat, canoe, kayak, ferry, yacht, raft, rowboat, row "
    "boat, speedboat, speed boat, motorboat, motor boat, gondola, tugboat, tug boat, cruise "
    "ship",
    "traffic light": "traffic light, traffic signal, stop light, stoplight, street signal",
    "fire hydrant": "fire hydrant, hydrant, fire plug",
    "stop sign": "stop sign",
    "parking meter": "parking meter",
    "bench": "bench, pew",
    "bird": "bird, duck, goose, gull, seagull, sea gull, pigeon, dove, parrot, parakeet, owl, "
    "eagle, hawk, falcon, crow, raven, sparrow, robin, hummingbird, woodpecker, swan, "
    "pelican, heron, flamingo, ostrich, peacock, penguin, rooster, hen, duckling, finch, "
    "cockatoo, stork",
    "cat": "cat, kitten, kitty, feline, tabby",
    "dog": "dog, puppy, pup, canine, hound, beagle, poodle, pug, bulldog, terrier, dachshund, "
    "chihuahua, collie, retriever, labrador, german shepherd, corgi, dalmatian",
    "horse": "horse, pony, foal, colt, mare, stallion, racehorse, race horse",
    "sheep": "sheep, lamb, ram, ewe",
    "cow": "cow, cattle, bull, calf, ox, steer, heifer, bovine, longhorn",
    "elephant": "elephant",
    "bear": "bear, panda, grizzly, cub, polar bear, black bear, brown bear, grizzly bear, "
    "panda bear, bear cub, baby bear",
    "zebra": "zebra",
    "giraffe": "giraffe",
    "backpack": "backpack, back pack, knapsack, rucksack",
    "umbrella": "umbrella, parasol",
    "handbag": "handbag, hand bag, purse, pocketbook, tote bag, shoulder bag",
    "tie": "tie, necktie, bow tie, bowtie, neck tie",
    "suitcase": "suitcase, suit case, luggage, briefcase, baggage",
    "frisbee": "frisbee, flying disc",
    "skis": "ski, pair of skis",
    "snowboard": "snowboard, snow board",
    "sports ball": "ball, sports ball, tennis ball, soccer ball, golf ball, bowling ball",
    "kite": "kite",
    "baseball bat": "bat, baseball bat",
    "baseball glove": "baseball glove, baseball mitt, mitt, catchers mitt, catcher s mitt",
    "skateboard": "skateboard, skate board, longboard",
    "surfboard": "surfboard, surf board, paddleboard, paddle board, boogie board, bodyboard",
    "tennis racket": "racket, racquet, tennis racket, tennis racquet",
    "bottle": "bottle, wine bottle, beer bottle, water bottle",
    "wine glass": "wine glass, wineglass, champagne glass, goblet",
    "cup": "cup, mug, teacup, tea cup, coffee cup, coffee mug",
    "fork": "fork",
    "knife": "knife, pocketknife, kitchen knife",
    "spoon": "spoon, ladle, teaspoon, tablespoon",
    "bowl": "bowl, soup bowl",
    "banana": "banana",
    "apple": "apple",
    "sandwich": "sandwich, burger, hamburger, cheeseburger, panini, sub sandwich",
    "orange": "orange, tangerine, clementine, mandarin",
    "broccoli": "broccoli",
    "carrot": "carrot",
    "hot dog": "hot dog, hotdog, chili dog",
    "pizza": "pizza, slice of pizza, pizza pie, pizza slice",
    "donut": "donut, doughnut, bagel",
    "cake": "cake, cupcake, cheesecake, wedding cake, birthday cake, cup cake",
    "chair": "chair, armchair, arm chair, stool, recliner, rocking chair, office chair, beach "
    "chair, lawn chair, high chair, highchair",
    "couch": "couch, sofa, loveseat, love seat, settee, futon",
    "potted plant": "potted plant, plant, houseplant, house plant, flower pot, flowerpot",
    "bed": "bed, bunk bed, crib, mattress",
    "dining table": "dining table, table, desk, coffee table, kitchen table, dinner table, "
    "tabletop, picnic table",
    "toilet": "toilet, urinal, commode, toilet seat, toilet bowl",
    "tv": "tv, television, tv set, television set, flat screen, monitor, computer monitor, "
    "computer screen, tv screen",
    "laptop": "laptop, notebook computer, laptop computer, macbook, netbook",
    "mouse": "mouse, computer mouse",
    "remote": "remote, remote control, wii remote, wiimote, controller, game controller, wii "
    "controller",
    "keyboard": "keyboard, computer keyboard",
    "cell phone": "cell phone, cellphone, phone, mobile phone, smartphone, smart phone, "
    "telephone, iphone, mobile, flip phone",
    "microwave": "microwave, microwave oven",
    "oven": "oven, stove, stovetop, stove top, toaster oven",
    "toaster": "toaster",
    "sink": "sink, washbasin, wash basin, basin",
    "refrigerator": "refrigerator, fridge, freezer",
    "book": "book, textbook, notebook, novel, paperback",
    "clock": "clock, alarm clock, clock face, clock tower",
    "vase": "vase",
    "scissors": "scissors, pair of scissors, shears",
    "teddy bear": "teddy bear, teddy, teddybear, stuffed bear, stuffed animal, toy bear, "
    "plush bear",
    "hair drier": "hair drier, hair dryer, hairdryer, blow dryer, blow drier",
    "toothbrush": "toothbrush, tooth brush",
}
"""What captions call each category; plurals are made from these."""

OTHER = (
    "train track, train station, train platform, train depot, bus stop, bus station, bus "
    "depot, car park, car seat, boat dock, home plate, license plate, toilet paper, toilet "
    "brush, toilet tissue, table cloth, table tennis, tennis table, book shelf, book case, "
    "book store, orange juice, apple juice, apple pie, banana bread, baseball game, baseball "
    "field, baseball uniform, baseball team, baseball diamond, baseball cap, baseball hat, "
    "baseball park, baseball stadium, football field, football game, basketball court, "
    "basketball game, tie dye, dog house, dog park, cat food, dog food, bird house, bird "
    "cage, bird bath, horse race, bear claw, plane ticket, bottle cap, phone booth, phone "
    "pole, telephone pole, telephone booth, kite board, mouse pad, mousepad, oven mitt, bird "
    "feeder, knife block, cake stand, pizza box, pizza pan, pizza cutter, pizza oven, chair "
    "lift, ski lift, ski slope, ski resort, ski pole, ski jump, ski suit, ski boot, ski trail"
)
"""Phrases that hold a category's word and name another thing."""

_PLURALS = {
    "person": "people", "man": "men", "woman": "women", "gentleman": "gentlemen",
    "child": "children", "policeman": "policemen", "fireman": "firemen", "fisherman": "fishermen",
    "businessman": "businessmen", "businesswoman": "businesswomen", "lady": "ladies",
    "baby": "babies", "goose": "geese", "calf": "calves", "ox": "oxen", "mouse": "mice",
    "knife": "knives",
}  # fmt: skip


def plural(word: str) -> str:
    """Return the plural of a word of this file."""
    if word in _PLURALS:
        return _PLURALS[word]
    if word.endswith(("s", "x", "ch", "sh")):
        return f"{word}es"
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return f"{word[:-1]}ies"
    return f"{word}s"


def _phrases() -> dict[str, str]:
    table: dict[str, str] = {}
    for category, phrases in [("", OTHER), *SYNONYMS.items()]:
        for phrase in phrases.split(", "):
            *first, last = phrase.split()
            table[phrase] = table[" ".join([*first, plural(last)])] = category
    return table


PHRASES = _phrases()
"""Category of every phrase, singular and plural; empty for other things."""

LONGEST = max(phrase.count(" ") + 1 for phrase in PHRASES)
"""Words in the longest phrase."""


def coco_mentions(text: str) -> list[str]:
    """Return the COCO category of every object a text names, in its order.

    Longer phrases go first, so that a "teddy bear" is not a bear, a "hot dog" not a dog, and a
    "train station" not a train.
    """
    words = re.findall(r"[a-z]+", text.lower())
    categories: list[str] = []
    start = 0
    while start < len(words):
        for length in range(min(LONGEST, len(words) - start), 0, -1):
            phrase = " ".join(words[start : start + length])
            if phrase in PHRASES:
                category = PHRASES[phrase]
                categories += [category] if category else []
                start += length
                break
        else:
            start += 1
    return categories
