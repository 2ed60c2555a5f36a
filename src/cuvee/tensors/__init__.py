"""Files and bytes: headers, readers, writer, sources. This room knows no models, methods or recipes."""

from cuvee.tensors import sources as sources  # first, because the modules of its nodes need it
