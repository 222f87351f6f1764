"""The one exception a user's mistake raises."""


class InputError(ValueError):
    """The input is wrong: an option, a file, a symbol, a bundle.

    The message is one line that names the culprit and says what would be accepted. Command lines
    print it without a traceback and exit with status 2.
    """
