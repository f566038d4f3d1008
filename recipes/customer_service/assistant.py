"""A dialogue with a customer: what is decided on each turn, and what is kept for the human who takes over."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from fallback import Thresholds, reason_to_hand_over
from past_answers import AnswerIndex, Similar
from service_models import Encoder, IntentModel, Message, ResponseModel

MAX_CHARACTERS = 2000  # of one turn; longer ones go to a human unread
PASSED_ON = "I am not sure I can help you with this, so I pass you on to a colleague."
HINT = "Answers that were given to similar requests:"


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What became of one turn of the user's.

    Args:
        dialogue, turn: their numbers, from 1 on.
        text: what the user said.
        intent, probability: the likeliest intent; that of the request before where the turn is a follow-up; `None` for
            a turn that is too long to be read.
        is_follow_up: whether the turn was taken to go on with the request before.
        similar: past answers, the most similar first.
        action: "answer" or "human".
        reason: why it goes to a human.
        response: what the user is told.
    """

    dialogue: int
    turn: int
    text: str
    intent: str | None = None
    probability: float | None = None
    is_follow_up: bool = False
    similar: list[Similar] = field(default_factory=list)
    action: str
    reason: str | None = None
    response: str

    def to_dict(self) -> dict[str, Any]:
        """As one flat JSON object."""
        similar = [{**vars(one.past), "similarity": one.similarity} for one in self.similar]
        return {**asdict(self), "similar": similar}


class Assistant:
    """Keeps a dialogue and decides on each turn.

    Args:
        intent, response: the models.
        encoder: embeds requests, if there are past answers.
        index: the past answers.
        thresholds: from where on a turn is answered.
        top_k: past answers to look up.
        with_answers: show them to the response model.
        follow_up_words: a turn of at most so many words goes on with the request before, if that was answered; 0 never.
        handover: file of JSON Lines to which dialogues are added that go to a human.
    """

    def __init__(
        self,
        intent: IntentModel,
        response: ResponseModel,
        encoder: Encoder | None,
        index: AnswerIndex | None,
        thresholds: Thresholds,
        *,
        top_k: int = 3,
        with_answers: bool = False,
        follow_up_words: int = 4,
        handover: Path,
    ) -> None:
        self.intent, self.response, self.encoder, self.index = intent, response, encoder, index
        self.thresholds, self.top_k, self.with_answers = thresholds, top_k, with_answers
        self.follow_up_words, self.handover = follow_up_words, handover
        self.dialogue_number = 0
        self.begin()

    def begin(self) -> None:
        """Begin a new dialogue."""
        self.dialogue: list[Message] = []
        self.turns: list[Turn] = []
        self.dialogue_number += 1

    def take(self, text: str) -> Turn:
        """Answer a turn, or hand the dialogue over; then a new one begins."""
        turn = self._decide(text)
        self.turns.append(turn)
        self.dialogue.append({"role": "user", "content": text})
        self.dialogue.append({"role": "assistant", "content": turn.response})
        if turn.action == "human":
            self._hand_over(turn)
            self.begin()
        return turn

    def _decide(self, text: str) -> Turn:
        place: dict[str, Any] = {"dialogue": self.dialogue_number, "turn": len(self.turns) + 1, "text": text}
        if len(text) > MAX_CHARACTERS:
            too_long = f"too long ({len(text)} > {MAX_CHARACTERS} characters)"
            return Turn(**place, action="human", reason=too_long, response=PASSED_ON)
        is_follow_up = bool(self.turns) and len(text.split()) <= self.follow_up_words
        intent, probability = self._intent_before() if is_follow_up else self._intent_of(text)
        similar = self._look_up(text)
        found: dict[str, Any] = {
            "intent": intent,
            "probability": probability,
            "is_follow_up": is_follow_up,
            "similar": similar,
        }
        reason = reason_to_hand_over(
            text,
            intent=intent,
            probability=probability,
            similarity=similar[0].similarity if similar else None,
            thresholds=self.thresholds,
            is_follow_up=is_follow_up,
        )
        response = ""
        if reason is None:
            try:
                response = printable(self.response.respond(self._prompt(text, similar)))
            except ValueError:  # what no cutting of the history makes fit
                reason = "too long for the response model"
            else:
                reason = None if response else "no answer from the response model"
        if reason is not None:
            return Turn(**place, **found, action="human", reason=reason, response=PASSED_ON)
        return Turn(**place, **found, action="answer", response=response)

    def _intent_of(self, text: str) -> tuple[str, float]:
        row = self.intent.probabilities([text])[0]
        return self.intent.labels[int(row.argmax())], float(row.max())

    def _intent_before(self) -> tuple[str, float]:
        before = self.turns[-1]  # it was answered, or a new dialogue would have begun
        assert before.intent is not None
        assert before.probability is not None
        return before.intent, before.probability

    def _look_up(self, text: str) -> list[Similar]:
        if self.index is None or self.encoder is None:
            return []
        return self.index.search(self.encoder.embed([text]), self.top_k)[0]

    def _prompt(self, text: str, similar: Sequence[Similar]) -> list[Message]:
        asked: list[Message] = [*self.dialogue, {"role": "user", "content": text}]
        if not (self.with_answers and similar):
            return asked
        hints = "\n".join(f"- {one.past.answer}" for one in similar)
        return [{"role": "system", "content": f"{HINT}\n{hints}"}, *asked]

    def _hand_over(self, turn: Turn) -> None:
        """Add the dialogue to the file for those who take over, in one write."""
        row = {
            "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "reason": turn.reason,
            "intent": turn.intent,
            "probability": turn.probability,
            "similar": turn.to_dict()["similar"],
            "dialogue": self.dialogue,
        }
        with open(self.handover, "a", encoding="utf-8", errors="replace") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def printable(text: str) -> str:
    """A text without characters that could steer a terminal; line breaks become spaces.

    >>> printable("a\\x1b[2J b\\nc")
    'a[2J b c'
    """
    return "".join(letter for letter in " ".join(text.split()) if letter.isprintable())
