"""Download a file of weights, and print a digest of each tensor as numpy reads it. Usage: weights.py NAME FILE."""

import json
import sys
from hashlib import sha256

import huggingface_hub
from safetensors.numpy import load_file

if __name__ == "__main__":
    name, file = sys.argv[1:]
    tensors = load_file(huggingface_hub.hf_hub_download(name, file))
    print(json.dumps({name: sha256(tensor.tobytes()).hexdigest() for name, tensor in tensors.items()}))
