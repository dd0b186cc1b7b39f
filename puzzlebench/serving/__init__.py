"""A model served under in-flight batching: what iterations cost, the steady state, and a simulation that checks it."""
