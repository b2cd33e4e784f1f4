"""Detectors as files that run without detkit: ONNX, TorchScript, torch.export."""
