"""a asks b for directions."""

from scripts.tools.generator.scenario import Ending, Scenario, question, turn

ASK_WAY = turn(
    "a",
    train="""
    [How do I get|Can you tell me the way] to {place}?
    I am looking for {place}. [Is it far?|Do you know it?]
    [Excuse me|Sorry], where is {place}?
    I need to [go|get] to {place} [quickly|today].
    Which way is {place}?
    """,
    validation="""
    I am [lost|new here]. I am on my way to {place}.
    """,
    test="""
    [Excuse me|Hello], I want to go to {place}. Is it far?
    Do you know [how to get|how I get] to {place}?
    """,
)
KNOW = turn(
    "b",
    train="""
    [Yes|Of course], I know it well.
    That is [easy|not far].
    [Let me think|One moment].
    Do you want to [walk|drive] there?
    """,
    validation="""
    I [go|pass] there often.
    """,
    test="""
    [Oh yes|Well], it is easy to find.
    I know it, [yes|of course].
    """,
)
PLEASE = turn(
    "a",
    train="""
    [Please tell me|I have no idea].
    I [have no map|am new here].
    What is the [best|shortest] way?
    """,
    validation="""
    Then [help|guide] me, please.
    """,
    test="""
    So what is the way, [please|my friend]?
    Please [help me|tell me more].
    """,
)
BUS = turn(
    "b",
    train="""
    Take bus {number} from {place_2}.
    [Go|Walk] to {place_2} and take bus {number}.
    Bus {number} [goes|runs] there. It leaves from {place_2}.
    [You need|You want] bus {number}, which stops at {place_2}.
    """,
    validation="""
    [Wait|Stand] at {place_2} until bus {number} comes.
    """,
    test="""
    From {place_2} you can [take|get] bus {number}.
    [Yes|Well], you take bus {number} at {place_2}.
    """,
)
WALK = turn(
    "b",
    train="""
    Walk past {place_2}, it takes {number} minutes.
    It is {number} minutes [on foot|from here], behind {place_2}.
    Go [left|right] at {place_2}, then it is {number} minutes.
    You can walk. In {number} minutes you [are there|will see it], just after {place_2}.
    """,
    validation="""
    [Cross|Follow] the road by {place_2} for {number} minutes.
    """,
    test="""
    You walk for {number} minutes and [go|come] past {place_2}.
    It is {number} minutes if you walk. You will see {place_2}.
    """,
)

DIRECTIONS = Scenario(
    topic="directions",
    opening=(ASK_WAY, KNOW, PLEASE),
    endings=(
        Ending(
            (BUS,),
            "{a} wants to go to {place}. {b} says to take bus {number} from {place_2}.",
            (
                question("Which bus is it? / What should {a} take?", "bus {number}"),
                question("Where does the bus leave? / Where does {a} get on?", "from {place_2}"),
                question("What does {b} advise? / What does {b} say?", "{b} says to take bus {number}."),
            ),
        ),
        Ending(
            (WALK,),
            "{a} wants to go to {place}. {b} says to walk {number} minutes past {place_2}.",
            (
                question("How long is the walk? / How many minutes are there?", "{number} minutes"),
                question("What is on the way? / What does {a} pass?", "past {place_2}"),
                question("What does {b} advise? / What does {b} say?", "{b} says to walk {number} minutes."),
            ),
        ),
    ),
    questions=(
        question("Where does {a} want to go? / What is {a} looking for?", "{a} wants to go to {place}."),
        question("Who asks the way? / Who does not know the way?", "{a} wants to go."),
        question("To which place? / What is the place?", "to {place}"),
    ),
)
