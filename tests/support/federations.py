"""What tests of federations share."""

from collections import defaultdict
from contextlib import nullcontext

from losses.preference import dpo


def dpo_loss(policy, reference):
    return dpo(policy, reference, beta=0.5)


class Log:
    """Collects what a run reports."""

    def __init__(self) -> None:
        self.rounds = defaultdict(list)  # split -> [(round, metrics)]
        self.clients = defaultdict(list)  # (client, split) -> [(round, metrics)]
        self.trained = []
        self.margins = {}  # round -> of each test pair
        self.traffic = []  # (round, bytes sent, bytes received)

    def start_client(self, server_round, client_id, pairs):
        self.trained.append((server_round, client_id))

    def server(self, server_round, split, metrics):
        self.rounds[split].append((server_round, metrics))

    def client(self, client_id, server_round, split, metrics):
        self.clients[client_id, split].append((server_round, metrics))

    def update(self, client_id, split, metrics, *, step): ...

    def advance(self, pairs): ...

    def evaluated(self, server_round, margins=(), samples=()):
        self.margins[server_round] = margins

    def clients_done(self, server_round): ...

    def phase(self, name):
        return nullcontext()


def everyone(**changes):
    return {"fraction_evaluate": 0.0, "min_train_nodes": 1, "min_available_nodes": 1} | changes
