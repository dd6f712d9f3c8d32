"""VARPipeline: labels in, pictures out. What users import."""
import torch
from pathlib import Path
from var.checkpoint import save_model
class VARPipeline:
    def __init__(self, model, vqvae, classes): self.model, self.vqvae, self.classes = model, vqvae, classes
    def save_pretrained(self, folder):
        save_model(Path(folder)/"transformer", self.model, {"classes": self.classes}); save_model(Path(folder)/"tokenizer", self.vqvae)
