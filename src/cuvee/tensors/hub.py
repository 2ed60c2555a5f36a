from pathlib import Path
from cuvee.tensors.location import Directory
def open_location(ref, cache_dir=None): return Directory(Path(ref.path).expanduser())
