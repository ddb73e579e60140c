"""What tests of federations share."""

from collections import defaultdict

from fed.tracking.log import Log as BaseLog
from losses.preference import dpo


def dpo_loss(policy, reference):
    return dpo(policy, reference, beta=0.5)


class Log(BaseLog):
    """A log that collects what a run reports."""

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

    def evaluated(self, server_round, margins=(), samples=(), *, who="server"):
        self.margins[server_round] = margins


def everyone(**changes):
    return {"fraction_evaluate": 0.0, "min_train_nodes": 1, "min_available_nodes": 1} | changes
