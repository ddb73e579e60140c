"""Settings and nodes of runs that Flower starts."""

import json

from fed.grids.remote import SETTINGS

SMALL = {"client_num_in_total": 2, "comm_round": 2, "num_threads": 1, "n_test_examples": 16, "n_eval_examples": 16}
OWN = {**SMALL, "partition": "own", "accuracy_on": "client"}


def allowing(policy, files):
    """Return the configurations of nodes whose owners have this policy, which is written beside the first file."""
    path = files[0].parent / "policy.yaml"
    path.write_text(policy)
    return [{**node, "policy": str(path)} for node in nodes(files)]


def nodes(files):
    return [{"data": str(path), "partition-id": number} for number, path in enumerate(files)]


def sets(**changes):
    """Return a server whose messages hold other settings than its own checks would let pass."""

    def hostile(message):
        config = next(iter(message.content.config_records.values()))
        sent = json.loads(str(config[SETTINGS]))
        for dotted, value in changes.items():
            group, _, name = dotted.rpartition(".")
            (sent["config"][group] if group else sent["config"])[name] = value
        config[SETTINGS] = json.dumps(sent)

    return hostile
