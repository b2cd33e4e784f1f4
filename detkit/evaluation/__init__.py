"""How good detections are: the COCO metric."""

from detkit.evaluation.backend import backend
from detkit.evaluation.coco import CocoEvaluator, evaluate_files
from detkit.evaluation.paired import compare
from detkit.evaluation.result import ClassResult, CocoResult

__all__ = ["ClassResult", "CocoEvaluator", "CocoResult", "backend", "compare", "evaluate_files"]
