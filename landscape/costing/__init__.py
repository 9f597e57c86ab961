"""What a plan will cost on a trained model, said before it is measured: passes, seconds, memory."""

from .around import connection_cost
from .counts import Passes, Probed, Spent, StageCost
from .measures import Known, measure_cost
from .memory import working_set
from .prediction import Prediction, predict, predicted_costs
from .rates import Rate, Rates, measure_rates

__all__ = [
    "Known",
    "Passes",
    "Prediction",
    "Probed",
    "Rate",
    "Rates",
    "Spent",
    "StageCost",
    "connection_cost",
    "measure_cost",
    "measure_rates",
    "predict",
    "predicted_costs",
    "working_set",
]
