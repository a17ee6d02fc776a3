"""What a run said of itself."""


def said(result, name):
    [event] = result.asset_materializations_for_node(f"experiments__{name}")
    return {k: v.value for k, v in event.metadata.items()}


def why(result):
    event = next(e for e in result.all_events if e.is_step_failure)
    data = event.step_failure_data
    return data.user_failure_data.description if data.user_failure_data else data.error.to_string()
