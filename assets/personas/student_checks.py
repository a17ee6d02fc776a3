"""Checks of the student: the contract of its table, and the gates of a release."""

import dagster as dg

from assets.expectations import Expect
from assets.quality import table_checks
from assets.resources import Tables
from ray_jobs.tables.personas import PERSONA_STUDENTS

_SHARES = ("ifr", "grounding", "coverage", "exploration_validity", "next_cluster_recall", "next_cluster_hit")

persona_student_checks = table_checks(
    PERSONA_STUDENTS,
    semantic=[
        Expect("ColumnUniqueValueCountToBeBetween", column="student_version", min_value=1, max_value=1),
        Expect("ColumnValuesToBeBetween", column="users", min_value=1),
        *(Expect("ColumnValuesToBeBetween", column=name, min_value=0, max_value=1) for name in _SHARES),
    ],
)


@dg.asset_check(
    asset=["personas", "persona_student"],
    name="release_gates",
    description="The student follows instructions, and the intervals of grounding and next-cluster recall less the "
    "teacher's lie above what the margins allow to be lost.",
)
def release_gates(context: dg.AssetCheckExecutionContext, tables: Tables) -> dg.AssetCheckResult:
    """A student that fails, or of which too few users tell, is kept back; the teacher goes on writing."""
    (student,) = (row for row in tables.read(PERSONA_STUDENTS).to_pylist() if row["writer"] == "student")
    told = "; ".join(line for line in student["gates"].splitlines() if " passed: " not in line)
    return dg.AssetCheckResult(
        passed=student["released"],
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"users": student["users"], "verdict": student["verdict"], "failing_sample": told},
        description=None
        if student["released"]
        else f"The student is {student['verdict']} and the teacher goes on writing: {told}",
    )
