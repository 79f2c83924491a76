"""The paper's grid of trainings, predictions and judgments: what is there, what is missing, and making it."""
