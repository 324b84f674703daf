"""The one exception that is meant for the person at the keyboard."""


class UserError(Exception):
    """Something only the user can mend; the message names the key, file or row and the way out.

    The command line prints it without a traceback.
    """
