"""Small talk: exchanges of two lines that do not belong in the summary.

Some contain names, places, times and prices, so that a model cannot summarize by listing everything that
looks like a fact. `{x}` says the first line, `{y}` the second.
"""

from scripts.tools.generator.names import Split

Exchange = tuple[str, str]

OPENERS: dict[Split, tuple[str, ...]] = {
    "train": (
        "Well", "You know", "Listen", "So", "By the way", "To be honest", "As I said", "Now", "Right", "Look",
        "Let me see", "Hmm", "Oh", "My dear", "You see", "Actually", "Anyway", "Believe me",
    ),
    "validation": ("In fact", "Frankly", "Mind you"),
    "test": ("My friend", "Oh well", "Now listen", "See"),
}  # fmt: skip
"""Words that can be put before any sentence without changing its meaning."""

GREETINGS: dict[Split, tuple[Exchange, ...]] = {
    "train": (
        ("[Hi|Hello], {y}!", "[Hi|Hello], {x}!"),
        ("Good [morning|evening], {y}.", "Good [morning|evening], {x}. Nice to see you."),
        ("Hello, {y}. How are you?", "[Fine|Very well], thanks."),
        ("[Hello|Hi] there!", "Oh, {x}, it is you."),
        ("Is that you, {y}?", "Yes, [it is me|here I am]."),
    ),
    "validation": (
        ("{y}, what a surprise!", "[Welcome|Hey], {x}."),
        ("Good [afternoon|day].", "Good [afternoon|day], {x}."),
    ),
    "test": (
        ("[Oh|Well], hello {y}!", "How nice to see you, {x}!"),
        ("{y}, are you there?", "[Yes|Of course], {x}."),
    ),
}

CHATTER: dict[Split, tuple[Exchange, ...]] = {
    "train": (
        ("How was your [weekend|holiday|week]?", "[Quiet|Busy|Too short], thank you."),
        ("It is [so cold|so hot|raining] today.", "[Yes|Indeed], and tomorrow will be worse."),
        ("Did you see {person_9} [yesterday|last night]?", "Yes, we [talked|had coffee] at {time_9}."),
        ("[My|The] bus was late [again|today].", "Mine left at {time_9}."),
        ("I paid ${price_9} for this [hat|book|coffee].", "[Really?|Oh.] It looks good."),
        ("I was at {place_9} [yesterday|on {day_9}].", "[Was it crowded?|I have never been there.]"),
        ("{person_9} says hello.", "[Thank you|How kind]. Say hello from me."),
        ("You look [tired|well] today.", "I [got up|woke up] at {time_9}."),
        ("How is your [mother|brother|family]?", "[Much better|Very well], thanks for asking."),
        ("I saw a film [last night|with {person_9}].", "[Did you like it?|I have no time for films.]"),
        ("My [cat|dog] is ill.", "I hope it [gets well|eats again] soon."),
        ("{place_9} is closed now.", "That is a pity. I [liked|loved] it."),
    ),
    "validation": (
        ("Have you [heard|read] the news?", "[No|Not yet], I avoid it."),
        ("{person_9} [moved|married] last month.", "So [soon|fast]?"),
        ("Since {time_9} my [head|back] aches.", "Poor you."),
        ("The [tea|cake] at {place_9} is awful.", "And it costs ${price_9}!"),
    ),
    "test": (
        ("Is it [cold|hot] at {place_9}?", "Yes, it is [worse|better] today."),
        ("I talked to {person_9} [today|last week].", "How [nice|kind]! I have not seen {person_9} again."),
        ("My dog woke me up at {time_9}.", "[Oh dear|Oh no], so you are tired."),
        ("They want ${price_9} for a [coffee|film] now.", "[Really|Yes], it is too much."),
        ("Have you been to {place_9}?", "No, is it [good|nice]?"),
        ("How is your [cat|dog]?", "[Fine|Very well], thank you."),
    ),
}

FAREWELLS: dict[Split, tuple[Exchange, ...]] = {
    "train": (
        ("[Thank you|Thanks], {y}.", "You are welcome."),
        ("[Goodbye|Bye], {y}!", "[Goodbye|Bye]!"),
        ("I must [go|run] now.", "[Take care|Have a good day]!"),
        ("See you, {y}.", "See you [soon|later]."),
    ),
    "validation": (
        ("[Farewell|So long], {y}.", "Until next time."),
        ("Time to leave.", "Me too, {x}."),
    ),
    "test": (
        ("[Well|Fine], see you then.", "Goodbye, {x}, and thank you!"),
        ("I have to go, {y}.", "Yes, see you [again|then]."),
    ),
}
