# Sourced: commands under a hard memory limit, by a control group (v1 or v2) that this user may make.
#
#   memory_group_make BYTES    sets $memory_group; "" and a note on stderr where there is no writable memory controller
#   memory_group_run COMMAND...   in the group (without one: as it is)
#   memory_group_peak          most bytes that were charged to the group; null without one
#   memory_group_remove

memory_group_make() {
    memory_group=
    if [ -w /sys/fs/cgroup/memory ]; then
        memory_group=/sys/fs/cgroup/memory/penstock-bench.$$
        mkdir "$memory_group"
        echo "$1" >"$memory_group/memory.limit_in_bytes"
    elif [ -w /sys/fs/cgroup/cgroup.subtree_control ]; then
        memory_group=/sys/fs/cgroup/penstock-bench.$$
        mkdir "$memory_group"
        echo "$1" >"$memory_group/memory.max"
    else
        echo "no writable memory controller: running without a hard limit" >&2
    fi
}

memory_group_run() {
    (
        [ -z "$memory_group" ] || echo "$BASHPID" >"$memory_group/cgroup.procs"
        exec "$@"
    )
}

memory_group_peak() {
    if [ -z "$memory_group" ]; then
        echo null
    else
        cat "$memory_group/memory.max_usage_in_bytes" 2>/dev/null || cat "$memory_group/memory.peak"
    fi
}

memory_group_remove() {
    [ -z "${memory_group-}" ] || rmdir "$memory_group" 2>/dev/null || true
    memory_group=
}
