"""The trajectory store: layout, writer, reader, verification."""
