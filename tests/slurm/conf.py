"""slurm.conf of a cluster whose nodes are all this host."""

from __future__ import annotations

import os
import pwd
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

GPUS = 8

CONTROLLER = """\
ClusterName=t
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# A requeued job waits as long as a credential lives: 120 s by default.
AuthInfo=socket={folder}/run/munge.sock,cred_expire={cred_expire}
CredType=cred/munge
MailProg=/bin/true
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=1,sched_min_interval=100000
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=100
GresTypes=gpu
EnforcePartLimits=ALL
# A lost node comes back by itself, one that was said to be down does not.
ReturnToService=1
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=5
MinJobAge=3600
SlurmdTimeout={node_timeout}
"""
NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} "
    "CPUs=32 RealMemory=64000 Gres=gpu:{gpus} State=UNKNOWN\n"
)
# `urgent` takes the nodes of jobs in `low`, which start again; nobody takes those of others.
PARTITIONS = """\
PartitionName=main Nodes=ALL Default=YES MaxTime=1-0 PriorityTier=2 PreemptMode=OFF
PartitionName=cpu Nodes=ALL MaxTime=1-0 PriorityTier=2 PreemptMode=OFF
PartitionName=low Nodes=ALL MaxTime=1-0 PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace}
PartitionName=urgent Nodes=ALL MaxTime=1-0 PriorityTier=9 PreemptMode=OFF
"""


def lay_out(
    folder: Path,
    nodes: Sequence[str],
    ports: Sequence[int],
    settings: Mapping[str, int],
    extra: Sequence[str],
) -> None:
    """Write all that Slurm reads into `folder`; `ports`: the controller's, then each node's."""
    for name in ("run", "state", "log", "dev", *(f"spool/{node}" for node in nodes)):
        (folder / name).mkdir(parents=True)
    # /dev/null itself is refused, as is a count of GPUs without files.
    for index in range(GPUS):
        (folder / f"dev/gpu{index}").symlink_to("/dev/null")
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(1024))
    host = socket.gethostname().split(".")[0]
    user = pwd.getpwuid(os.geteuid()).pw_name
    text = CONTROLLER.format(host=host, port=ports[0], user=user, folder=folder, **settings)
    for name, port in zip(nodes, ports[1:], strict=True):
        text += NODE.format(name=name, host=host, port=port, gpus=GPUS)
    text += PARTITIONS.format(**settings)
    (folder / "slurm.conf").write_text(text + "".join(f"{line}\n" for line in extra))
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/dev/gpu[0-{GPUS - 1}]\n")
