"""What long histories cost: one module a claim, each with its target, its named peer and its proof of equality.

A claim is a module with a function ``measure(options) -> list[Finding]`` (see `claims`). It proves the results of its
contenders equal before anything is timed, by `claims.prove_equal`, and gives one finding a line of the table.
"""
