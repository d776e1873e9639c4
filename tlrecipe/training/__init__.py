"""The interpreter: carries out a plan. Phases, freezing, stored features, optimizer, steps, evaluation."""
