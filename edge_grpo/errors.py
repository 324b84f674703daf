"""The one exception that is meant for the person at the keyboard."""


class UserError(Exception):
    """Something only the user can mend; the message names the key, file or row and the way out.

    The command line prints it without a traceback.
    """


class Stopped(SystemExit):
    """A signal ended the run, and with it a sweep; what the run had done is on the disk.

    Args:
        signum: of the signal; the process exits with 128 + signum, as a shell reports it.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
