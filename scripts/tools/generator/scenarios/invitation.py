"""a invites b to an activity."""

from scripts.tools.generator.scenario import Ending, Scenario, question, turn

INVITE = turn(
    "a",
    train="""
    [Do you want|Would you like] to come to {activity} at {place}?
    I am [planning|organizing] {activity} at {place}. Will you join [me|us]?
    There will be {activity} at {place}. [Can|Could] you come?
    How about {activity} at {place}? It would be [nice|fun] to have you.
    [Are you free|Do you have time] for {activity} at {place}?
    Let us meet at {place} for {activity}.
    """,
    validation="""
    I have [arranged|set up] {activity} at {place}. Shall I count you in?
    You [should|must] come with us to {place} for {activity}.
    """,
    test="""
    [We|They] have {activity} at {place}. Would you like to join us?
    Can I [get|ask] you to come to {activity}? It will be at {place}.
    """,
)
ASK_WHEN = turn(
    "b",
    train="""
    [Sounds nice|That sounds fun]. When is it?
    [When|What day and time] do you have in mind?
    [Oh|Well], when would that be?
    Tell me the day and the hour.
    """,
    validation="""
    [Interesting|Lovely]. What time is that?
    """,
    test="""
    [Nice|Good idea]. What day would it be?
    And when [do we meet|does it start]?
    """,
)
SAY_WHEN = turn(
    "a",
    train="""
    On {day} at {time}.
    [It starts|We start] at {time} on {day}.
    {day}, {time}, if that [suits you|is all right].
    [We meet|Everybody comes] on {day}, at {time}.
    I [thought|was thinking] of {day} at {time}.
    """,
    validation="""
    It is [set|fixed] for {day} at {time}.
    At {time}, [this|next] {day}.
    """,
    test="""
    [Come|Please come] at {time} on {day}.
    {day} would be best, at {time}.
    """,
)
ACCEPT = turn(
    "b",
    train="""
    [Great|Perfect], I will be there.
    [Count me in|I would love to come].
    Yes, [gladly|with pleasure]. See you then.
    That [suits me|works for me].
    """,
    validation="""
    [Fine|Wonderful], I am coming.
    """,
    test="""
    [Good|Fine], I will come.
    Yes, I [would like|want] to join you.
    """,
)
DECLINE = turn(
    "b",
    train="""
    [Sorry|Oh no], I cannot come. I have {excuse} then.
    I am afraid not, because of {excuse}.
    [What a pity|Too bad]. There is {excuse} in my way.
    I would love to, but I have {excuse}.
    """,
    validation="""
    [Not this time|Impossible], I have got {excuse}.
    """,
    test="""
    I am afraid {excuse} is in my way.
    No, I have {excuse} [then|today].
    """,
)

INVITATION = Scenario(
    topic="invitation",
    opening=(INVITE, ASK_WHEN, SAY_WHEN),
    endings=(
        Ending(
            (ACCEPT,),
            "{a} invites {b} to {activity} at {place} on {day} at {time}. {b} accepts.",
            (question("Does {b} accept? / What does {b} decide?", "{b} accepts."),),
        ),
        Ending(
            (DECLINE,),
            "{a} invites {b} to {activity} at {place} on {day} at {time}. {b} declines because of {excuse}.",
            (
                question("Does {b} accept? / What does {b} decide?", "{b} declines."),
                question("Why does {b} decline? / What keeps {b} away?", "{b} declines because of {excuse}."),
            ),
        ),
    ),
    questions=(
        question("Who invites whom? / Who asks whom to come?", "{a} invites {b}."),
        question("What is the invitation for? / What does {a} plan?", "{a} invites {b} to {activity}."),
        question("Where will it be? / What is the place?", "at {place}"),
        question("On which day? / What day is it?", "on {day}"),
        question("When do they meet? / What day and time?", "on {day} at {time}"),
        question("Where and when is it?", "at {place} on {day} at {time}"),
    ),
)
