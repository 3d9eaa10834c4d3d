"""What real hosts do: reports of other agents' users, each with the state that is right."""
