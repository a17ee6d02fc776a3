"""The teacher: a small task a call. One sentence for one interest, two tries; then one choice for one anchor."""

from models.language.labels import plain
from models.language.sentences import Problem
from ray_jobs.language.engine import ChoiceError, LanguageEngine
from ray_jobs.personas.prompts import (
    NEVER_ANSWERED,
    Request,
    ask_choice,
    ask_interest,
    choice_messages,
    interest_messages,
    neutral_person,
    problem_of,
)
from ray_jobs.personas.writers import Written

NO_REPEAT_NGRAM = 3
# What leaves a task undone, whatever the sentence is worth.
UNFINISHED = (NEVER_ANSWERED, "truncated")


class TeacherWriter:
    """See `ray_jobs.personas.writers.Writer`.

    Args:
        engine: A loaded engine.
        max_new_tokens: Token limit of a sentence.
    """

    def __init__(self, engine: LanguageEngine, max_new_tokens: int):
        self.engine, self.max_new_tokens = engine, max_new_tokens

    def write(self, requests: list[Request]) -> list[Written]:
        """See `Writer.write`."""
        explored = self._explore(requests)
        sentences, problems, attempts = self._describe(requests)
        return [
            Written(
                [(i, sentences[row][i.cluster]) for i in request.interests if i.cluster in sentences[row]],
                explored[row],
                attempts[row],
                problems[row],
                len(explored[row]) == len(request.anchors)
                and all(
                    i.cluster in sentences[row] or problems[row].reason not in UNFINISHED for i in request.interests
                ),
            )
            for row, request in enumerate(requests)
        ]

    def _explore(self, requests: list[Request]) -> list[list[tuple[int, int]]]:
        """For each user the pairs (anchor, chosen cluster); one choice an anchor, all distinct."""
        explored: list[list[tuple[int, int]]] = [[] for _ in requests]
        for turn in range(max((len(r.anchors) for r in requests), default=0)):
            asked, users, options = [], [], []
            for row, request in enumerate(requests):
                if turn >= len(request.anchors):
                    continue
                anchor, taken = request.anchors[turn], {c for _, c in explored[row]}
                left = [
                    (c, label)
                    for c, label in zip(anchor.candidates, anchor.candidate_labels, strict=True)
                    if c not in taken
                ]
                if left:
                    asked.append((row, anchor.cluster, [c for c, _ in left]))
                    users.append(ask_choice(request, anchor, [label for _, label in left]))
                    options.append([plain(label) for _, label in left])
            if not asked:
                continue
            chosen: list[int | None]
            try:
                chosen = list(self.engine.choose(list(choice_messages()), users, options, neutral_person()))
            except ChoiceError as error:
                chosen = error.chosen
            for (row, anchor_cluster, clusters), option in zip(asked, chosen, strict=True):
                if option is not None:
                    explored[row].append((anchor_cluster, clusters[option]))
        return explored

    def _describe(self, requests: list[Request]) -> tuple[list[dict[int, str]], list[Problem], list[int]]:
        """Usable sentences by cluster, the last problem and the number of calls of each user; two tries a sentence."""
        sentences: list[dict[int, str]] = [{} for _ in requests]
        problems = [Problem("no_interest", "There was nothing to describe.") for _ in requests]
        attempts = [0] * len(requests)
        waiting = [(row, interest) for row, request in enumerate(requests) for interest in request.interests]
        for repair in (False, True):
            if not waiting:
                break
            answers = self.engine.complete(
                list(interest_messages(repair)),
                [ask_interest(i, repair=repair) for _, i in waiting],
                self.max_new_tokens,
                no_repeat_ngram=NO_REPEAT_NGRAM,
            )
            failed = []
            for (row, interest), answer in zip(waiting, answers, strict=True):
                attempts[row] += 1
                problem = problem_of(answer, interest)
                if problem is None:
                    sentences[row][interest.cluster] = answer.text
                else:
                    problems[row] = problem
                    failed.append((row, interest))
            waiting = failed
        return sentences, problems, attempts
