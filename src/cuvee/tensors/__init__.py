"""Files and bytes: headers, readers, writer, sources. This room knows no models, methods or recipes."""
