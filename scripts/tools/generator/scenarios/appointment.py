"""a makes an appointment with b."""

from scripts.tools.generator.scenario import Ending, Scenario, question, turn

NEED = turn(
    "a",
    train="""
    I need {service} [soon|this week].
    I [would like|want] to book {service}.
    [Can|Could] I have {service}, please?
    I am calling [about|for] {service}.
    [Do you offer|Is there room for] {service}?
    """,
    validation="""
    Please [put me down|sign me up] for {service}.
    """,
    test="""
    I am [here|looking] for {service}. Do you have time?
    [Could|Can] you book {service} for me?
    """,
)
OFFER = turn(
    "b",
    train="""
    [I can offer you|We have] {day} at {time}.
    How about {day} at {time}?
    [Is|Would] {time} on {day} [good for you|all right]?
    There is a free hour on {day}, at {time}.
    [Come|Please come] on {day} at {time}.
    """,
    validation="""
    My next [gap|opening] is {day}, {time}.
    """,
    test="""
    On {day} I have time at {time}. [Is that good?|Would you come?]
    [Can|Could] you come at {time} on {day}?
    """,
)
FITS = turn(
    "a",
    train="""
    [That suits me|That works for me], thank you.
    [Perfect|Great], I will come then.
    Yes, [please book it|that is fine].
    """,
    validation="""
    [Splendid|Good], write it down.
    """,
    test="""
    Yes, [that is good|I can come then].
    [Fine|Great], please book it for me.
    """,
)
SHIFT = turn(
    "a",
    train="""
    I cannot come then. Is {time_2} possible?
    [That is too early|That is too late]. Do you have {time_2}?
    I would [prefer|like] {time_2}.
    [Sorry|Oh], could we say {time_2}?
    """,
    validation="""
    [Make|Let us make] it {time_2}, I am busy before.
    """,
    test="""
    No, I have no time then. [How|What] about {time_2}?
    Could I come at {time_2}, please?
    """,
)
CONFIRM = turn(
    "b",
    train="""
    [Good|Fine], I have written it down.
    It is booked. [See you then.|Please be on time.]
    [All right|Very well], we will expect you.
    """,
    validation="""
    [Noted|Right], you are on my list.
    """,
    test="""
    [Yes|Good], then it is booked for you.
    [Good|Fine], we will see you.
    """,
)

APPOINTMENT = Scenario(
    topic="appointment",
    opening=(NEED, OFFER),
    endings=(
        Ending(
            (FITS, CONFIRM),
            "{b} books {service} for {a} on {day} at {time}.",
            (
                question("When is it? / What day and time is it booked for?", "on {day} at {time}"),
                question("Is the first time good? / Does {a} take the first time?", "{a} takes {time}."),
            ),
        ),
        Ending(
            (SHIFT, CONFIRM),
            "{b} books {service} for {a} on {day} at {time_2}, because {a} cannot come at {time}.",
            (
                question("When is it? / What day and time is it booked for?", "on {day} at {time_2}"),
                question(
                    "Is the first time good? / Does {a} take the first time?", "{a} cannot come at {time}."
                ),
                question("Why is it not the first time?", "because {a} cannot come at {time}"),
            ),
        ),
    ),
    questions=(
        question("Who books for whom? / For whom does {b} book?", "{b} books for {a}."),
        question("What does {a} need? / What is booked?", "{service}"),
        question("What does {b} do? / Who books what?", "{b} books {service}."),
        question("On which day? / What day is it?", "on {day}"),
    ),
)
