"""What the simulated processes do, the model that knows what must be true, and the checks that compare both."""
