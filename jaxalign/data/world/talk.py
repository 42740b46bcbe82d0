"""Small talk: what people say, what a kind partner replies, and the words by which a reply is known."""

from __future__ import annotations

from typing import NamedTuple


class Intent(NamedTuple):
    says: tuple[str, ...]
    replies: tuple[str, ...]
    keywords: tuple[str, ...]  # a fitting reply has one of them
    story: tuple[str, ...]  # the same exchange as prose


INTENTS: dict[str, Intent] = {
    "hello": Intent(
        ("Hello!", "Hi there!", "Hello, my friend!"),
        ("Hello! It is nice to meet you.", "Hello! How can I help you today?"),
        ("hello",),
        ("{A} met {B} and said hello. It was nice to meet a friend.",),
    ),
    "how": Intent(
        ("How are you?", "How are you today?", "Are you well?"),
        ("I am well, thank you.", "I am very well today, thank you."),
        ("well",),
        ("{A} told {B} that all was well. {B} was glad to hear it.",),
    ),
    "thanks": Intent(
        ("Thank you!", "Thank you for your help.", "Thanks, my friend!"),
        ("You are welcome.", "You are welcome. I like to help."),
        ("welcome",),
        ('{A} said thank you for the help. "You are welcome," said {B}.',),
    ),
    "bye": Intent(
        ("Goodbye!", "I have to go now.", "See you later!"),
        ("Goodbye! See you soon.", "Goodbye, and have a nice day."),
        ("goodbye",),
        ("{A} had to go and said goodbye. {B} said goodbye too.",),
    ),
    "sad": Intent(
        ("I am sad today.", "I feel a bit sad.", "Today I am so sad."),
        ("I am sorry to hear that. I hope you feel better soon.", "I am sorry. A walk may help you feel better."),
        ("sorry", "better"),
        ("{A} was sad. {B} was sorry to hear that, and they took a walk.",),
    ),
    "happy": Intent(
        ("I am so happy today!", "I feel very happy.", "Today I am happy."),
        ("I am glad to hear that.", "That is nice. I am glad for you."),
        ("glad",),
        ("{A} was happy, and {B} was glad to hear that.",),
    ),
    "tired": Intent(
        ("I am tired.", "I feel so tired today.", "I am very tired now."),
        ("You should rest a little.", "It is time to rest. Sleep well."),
        ("rest", "sleep"),
        ("{A} was tired. {B} said that it was time to rest.",),
    ),
    "hungry": Intent(
        ("I am hungry.", "I feel so hungry now.", "I am very hungry today."),
        ("You should eat some bread.", "It is time to eat. I like bread and soup."),
        ("eat", "bread"),
        ("{A} was hungry. {B} gave {A} bread and soup to eat.",),
    ),
    "bored": Intent(
        ("I am bored.", "I feel so bored today.", "I am very bored now."),
        ("You could read a book.", "You could play a game with a friend."),
        ("read", "play"),
        ("{A} was bored. {B} said that they could read a book or play a game.",),
    ),
    "morning": Intent(
        ("Good morning!", "Good morning, my friend!", "A good morning to you!"),
        ("Good morning! I hope you slept well.", "Good morning to you too."),
        ("morning",),
        ("In the morning {A} said good morning to {B}.",),
    ),
    "night": Intent(
        ("Good night!", "Good night, my friend!", "A good night to you!"),
        ("Good night! Sleep well.", "Good night to you too."),
        ("night",),
        ("In the evening {A} said good night to {B} and went to sleep.",),
    ),
    "weather": Intent(
        ("What nice weather!", "The weather is nice today.", "I like the weather today."),
        ("Yes, it is a nice day for a walk.", "Yes, the sun is out and the air is warm."),
        ("walk", "warm", "sun"),
        ("{A} and {B} liked the weather. The sun was out, and it was a nice day for a walk.",),
    ),
}
