OPTIONS = ("Cats", "Dogs")


def page(voted=None):
    choices = "".join(f"<button>{option}</button>" for option in OPTIONS)
    return f"<h1>{OPTIONS[0]} or {OPTIONS[1]}?</h1>{choices}<p>You voted: {voted or 'not yet'}</p>"
