"""Trains many users' adapters over one frozen base, each exactly as if it were alone.

`fit.py` is the loop; `packing.py` lays the users' sequences out in rows without padding, `lora.py`
and `attention.py` see to it that no token meets another user or another sequence, `loss.py` makes
logits only where they are learned from, `norm.py` normalises in few passes, `memory.py` says how
much fits. `alone.py` is PEFT's way, for what these cannot do.
"""
