"""Evaluation: whether personalization helped, on users' own held-out questions.

In: users' Profiles with questions, a base model, a teacher. Out: an Evaluation. `evaluate.py` runs
the arms and `statistics.py` compares them; `report.py` and `plots.py` show what came out.
"""
