"""Many runs: other methods beside ours, search, sweep, plan. Knows all rooms below."""
