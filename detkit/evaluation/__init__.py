"""How good detections are: the metrics of COCO, VOC and LVIS, and what lies behind the numbers."""

from detkit.evaluation.backend import backend
from detkit.evaluation.coco import CocoEvaluator, evaluate_files
from detkit.evaluation.lvis import LvisResult, evaluate_lvis_files
from detkit.evaluation.paired import compare
from detkit.evaluation.result import ClassResult, CocoResult
from detkit.evaluation.voc import VocResult, VocSettings, evaluate_voc_files

__all__ = [
    "ClassResult",
    "CocoEvaluator",
    "CocoResult",
    "LvisResult",
    "VocResult",
    "VocSettings",
    "backend",
    "compare",
    "evaluate_files",
    "evaluate_lvis_files",
    "evaluate_voc_files",
]
