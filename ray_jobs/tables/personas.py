"""Tables of the stage `personas`."""

import pyarrow as pa

from ray_jobs.tables.captions import TAKES_TOKENS
from ray_jobs.tables.interactions import CREATED
from ray_jobs.warehouse import TIMESTAMP, Column, Table

VECTOR = pa.list_(pa.float32())
INTERESTS = pa.list_(
    pa.struct(
        [
            ("cluster", pa.int32()),
            ("label", pa.string()),
            ("share", pa.float64()),
            ("evidence_item_ids", pa.list_(pa.string())),
            ("evidence_titles", pa.list_(pa.string())),
        ]
    )
)
EXPLORATIONS = pa.list_(
    pa.struct(
        [("cluster", pa.int32()), ("label", pa.string()), ("anchor_cluster", pa.int32()), ("similarity", pa.float64())]
    )
)

PERSONA_STORE = Table(
    "personas/persona_store",
    "one persona text that was paid for; append-only",
    (
        Column("content_key", pa.string(), "Digest of interests, prompt, model revision and parameters."),
        Column("text", pa.string(), "The persona in natural language."),
        Column("described", pa.list_(pa.int32()), "Clusters of the interests that the text describes."),
        Column("explored", pa.list_(pa.int32()), "Clusters that the model chose to explore."),
        Column("anchors", pa.list_(pa.int32()), "The interest next to which each of them was chosen."),
        Column("attempts", pa.int32(), "Calls that it took."),
        *TAKES_TOKENS,
        CREATED,
    ),
    primary_key=("content_key",),
)

PERSONA_DEAD_LETTERS = Table(
    "personas/dead_letters",
    "one content of which no attempt made a usable text",
    (
        Column("content_key", pa.string(), "As in the store."),
        Column("reason", pa.string(), "Reason code of the last attempt, e.g. `repetition`, `too_short`."),
        Column("detail", pa.string(), "One sentence."),
        Column("attempts", pa.int32(), "Calls made."),
        *TAKES_TOKENS,
        CREATED,
    ),
    primary_key=("content_key",),
)

PERSONA_LESSONS = Table(
    "personas/lessons",
    "one content that the teacher has answered for a student to learn from; append-only",
    (
        Column("content_key", pa.string(), "Digest of interests, prompts, model revision and parameters."),
        Column("user_id", pa.string(), "User whose history it is of; the first one, if several share it.", pii=True),
        Column("question", pa.string(), "What the student will be asked; empty where the gates left no lesson."),
        Column("answer", pa.string(), "What it should answer: JSON with sentences, cited items and topics."),
        Column("sentences_asked", pa.int32(), "Interests of the request."),
        Column("sentences_passed", pa.int32(), "Of these, described by a sentence that passed the gates."),
        CREATED,
    ),
    primary_key=("content_key",),
)

PERSONA_STUDENTS = Table(
    "personas/persona_student",
    "one writer on the same held-out users: the teacher, and the student before and after it was taught",
    (
        Column("writer", pa.string(), "`teacher`, `untaught`, `student`, or `student_free` (not held to the schema)."),
        Column("student_version", pa.string(), "Version of the training: inputs, parameters, code."),
        Column("released", pa.bool_(), "Whether the student passed every gate."),
        Column("verdict", pa.string(), "`released`, `kept back`, or `undecided`: too few users to tell."),
        Column("gates", pa.string(), "What became of each gate, a sentence a line."),
        Column("users", pa.int64(), "Held-out users."),
        Column("users_with_later_likes", pa.int64(), "Of these, users who liked something later."),
        Column("ifr", pa.float64(), "Instruction following rate: both tasks, exact counts, readable; of all users."),
        Column("grounding", pa.float64(), "Share of the interests asked for with a usable, grounded sentence."),
        Column("coverage", pa.float64(), "The same, weighted by the interests' shares of the user's likes."),
        Column("exploration_validity", pa.float64(), "Share of the anchors with a valid, novel topic."),
        Column("next_cluster_recall", pa.float64(), "Share of the clusters liked later that the persona names."),
        Column("next_cluster_hit", pa.float64(), "Share of users of whom it names any."),
        Column("next_novel_hit", pa.float64(), "The same by explorations, of clusters never touched before."),
        Column("exploration_agreement", pa.float64(), "Share of the teacher's explorations that are chosen, too."),
        Column("grounding_difference", pa.float64(), "Grounding less the teacher's, on the same users."),
        Column("grounding_difference_low", pa.float64(), "Lower bound of its 95 % interval over users, paired."),
        Column("grounding_difference_high", pa.float64(), "Upper bound."),
        Column(
            "next_cluster_recall_difference", pa.float64(), "Next-cluster recall less the teacher's.", nullable=True
        ),
        Column("next_cluster_recall_difference_low", pa.float64(), "Lower bound of its interval.", nullable=True),
        Column("next_cluster_recall_difference_high", pa.float64(), "Upper bound.", nullable=True),
        Column("calls_per_user", pa.float64(), "Calls to the model."),
        Column("tokens_per_user", pa.float64(), "Tokens of prompts and answers."),
        Column("seconds_per_user", pa.float64(), "Wall time, all users in batches; without loading."),
        Column("artifact", pa.string(), "The student's adapter, as PEFT and vLLM read it."),
        CREATED,
    ),
    primary_key=("writer",),
)

PERSONA_EXAMINED = Table(
    "personas/examined_personas",
    "what one writer said of one held-out user in the newest examination of a student",
    (
        Column("writer", pa.string(), "`teacher` or `student`."),
        Column("user_id", pa.string(), "User.", pii=True),
        Column("examination", pa.string(), "Its name: training and users."),
        Column("student_version", pa.string(), "The training that was examined; see `personas/persona_student`."),
        Column("interests", INTERESTS, "Interests with a usable sentence, and the items that it rests on."),
        Column("claims", pa.list_(pa.string()), "The sentence of each interest.", pii=True),
        Column("explorations", EXPLORATIONS, "Novel topics that were chosen."),
        Column("interests_asked", pa.int32(), "Interests of the request."),
        Column("explorations_asked", pa.int32(), "Anchors of the request."),
        Column("seen_until", pa.int64(), "Position of the last event that the writer was told of."),
        Column("parameters", pa.string(), "Knobs of interests and explorations, as JSON."),
        CREATED,
    ),
    primary_key=("writer", "user_id"),
)

PERSONA_COVERAGE = Table(
    "personas/coverage",
    "how many users have a persona, and why the others have none",
    (
        Column("users", pa.int64(), "Users with any event."),
        Column("users_too_little_history", pa.int64(), "Too few events or likes, or no interest with enough items."),
        Column("users_eligible", pa.int64(), "Users with enough history."),
        Column("users_written", pa.int64(), "Users with a persona."),
        Column("users_failed", pa.int64(), "Users of whom no usable text could be made."),
        Column("users_over_budget", pa.int64(), "Users with enough history that the token budget left out."),
        Column("token_budget", pa.int64(), "Tokens that the table may cost when nothing is cached."),
        Column("tokens_planned", pa.int64(), "Estimated tokens of the users within the budget."),
        Column("parameters", pa.string(), "Knobs of the plan and what else decides a text, as JSON."),
        CREATED,
    ),
    primary_key=(),
)

USER_PERSONAS = Table(
    "personas/user_personas",
    "one user with enough history and within the token budget",
    (
        Column("user_id", pa.string(), "User.", pii=True),
        Column("content_key", pa.string(), "Its text in the store."),
        Column("persona", pa.string(), "The persona in natural language.", pii=True),
        Column("interests", INTERESTS, "Existing interests, strongest first, each grounded in items of the history."),
        Column("explorations", EXPLORATIONS, "Novel interests: clusters that the history never touched."),
        Column("embedding", VECTOR, "Unit-length text embedding of the persona."),
        Column("num_events", pa.int64(), "Events of the user that the persona saw."),
        Column("persona_version", pa.string(), "Codebook version, prompt, model revision and parameters."),
        Column("event_timestamp", TIMESTAMP, "Time of the last event that the persona saw, plus one microsecond."),
        CREATED,
    ),
    primary_key=("user_id",),
)

REFRESHED_PERSONAS = Table(
    "personas/refreshed_personas",
    "one persona that a refresh wrote; append-only, the newest of a user is served",
    (
        Column("user_id", pa.string(), "User.", pii=True),
        Column("content_key", pa.string(), "Its text in the store."),
        Column("persona", pa.string(), "The persona in natural language.", pii=True),
        Column("interests", INTERESTS, "As in `personas/user_personas`."),
        Column("explorations", EXPLORATIONS, "As in `personas/user_personas`."),
        Column("clusters", pa.string(), "Digest of the clusters of the newest events that it was written for."),
        Column("num_events", pa.int64(), "Events of the user that the persona saw."),
        Column("persona_version", pa.string(), "Codebook version, prompt, model revision and parameters."),
        Column("lease", pa.string(), "Row and fence of the lease that it was written under."),
        Column("event_timestamp", TIMESTAMP, "Time of the last event that the persona saw, plus one microsecond."),
        CREATED,
    ),
    primary_key=("user_id", "lease"),
)

PERSONA_VERDICTS = Table(
    "personas/verdicts",
    "what one safety filter said of one text; append-only",
    (
        Column("content_key", pa.string(), "The text in the store."),
        Column("filter_version", pa.string(), "Terms, categories, and the classifier's prompt and model."),
        Column("category", pa.string(), "Why the text is shown to nobody; empty: it is safe."),
        Column("rule", pa.string(), "The term's number in its category, or `classifier`."),
        CREATED,
    ),
    primary_key=("content_key", "filter_version"),
)

PERSONA_MEASURES = Table(
    "personas/persona_measures",
    "one measure of one set of personas or of a control, or the difference between the two",
    (
        Column(
            "personas",
            pa.string(),
            "`written` (the table), planned by `semantic_ids` or `salient_terms`, or of `teacher` or `student`.",
        ),
        Column(
            "split_rule",
            pa.string(),
            "Split whose train part the personas saw; `held_events`: all but the newest share; empty: every event.",
        ),
        Column("period", pa.string(), "`valid` or `test`, where later events are looked at; empty: none are."),
        Column("measure", pa.string(), "What was measured, e.g. `grounding_precision`."),
        Column("arm", pa.string(), "`own`, or a control such as `other_user`."),
        Column(
            "baseline", pa.string(), "Control that the value is a difference to, users paired; empty: no difference."
        ),
        Column("value", pa.float64(), "The value."),
        Column("low", pa.float64(), "Lower end of its 95 % interval over users."),
        Column("high", pa.float64(), "Upper end."),
        Column("num_users", pa.int64(), "Users that have it."),
        Column("personas_version", pa.string(), "Version of `personas/user_personas`."),
        CREATED,
    ),
    primary_key=("personas", "split_rule", "period", "measure", "arm", "baseline"),
)
