"""What a training step will need and take, before it runs: ``fastvivit.plan``."""

from fastvivit.planning.plan import Plan, advice, plan
from fastvivit.planning.switches import Switch
from fastvivit.planning.texts import TextSize

__all__ = ["Plan", "Switch", "TextSize", "advice", "plan"]
