package config

import (
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
)

// MachineMemory is how many bytes this process and its neighbours may have: the lowest limit
// of its control groups (version 1 or 2), or the memory of the machine if that is less;
// 0 where neither is known.
func MachineMemory() int64 { return machineMemory("/") }

func machineMemory(root string) int64 {
	least := int64(math.MaxInt64)
	take := func(n int64) {
		if n > 0 {
			least = min(least, n)
		}
	}
	for line := range strings.Lines(readWhole(root, "proc/meminfo")) {
		if v, ok := strings.CutPrefix(line, "MemTotal:"); ok {
			kb, _ := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(v), "kB")), 10, 64)
			take(kb << 10)
		}
	}
	// Within a container the path may be the host's, which is not there; then the group is
	// the root of what is mounted.
	for line := range strings.Lines(readWhole(root, "proc/self/cgroup")) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		base, file := "sys/fs/cgroup", "memory.max"
		switch {
		case parts[0] == "0" && parts[1] == "":
		case strings.Contains(","+parts[1]+",", ",memory,"):
			base, file = "sys/fs/cgroup/memory", "memory.limit_in_bytes"
		default:
			continue
		}
		for dir := filepath.Clean("/" + parts[2]); ; dir = filepath.Dir(dir) {
			n, _ := strconv.ParseInt(strings.TrimSpace(readWhole(root, filepath.Join(base, dir, file))), 10, 64) // "max" is none
			take(n)
			if dir == "/" {
				break
			}
		}
	}
	if least == math.MaxInt64 {
		return 0
	}
	return least
}

func readWhole(root, name string) string {
	b, err := os.ReadFile(filepath.Join(root, name)) // #nosec G304 -- of the system
	if err != nil {
		return ""
	}
	return string(b)
}

// KeepMemory has the garbage collector work harder before the process holds limit bytes:
// within the last tenth there is only what is in use. A lower GOMEMLIMIT in the environment
// stays.
func KeepMemory(limit int64) {
	if soft := limit / 10 * 9; soft < debug.SetMemoryLimit(-1) {
		debug.SetMemoryLimit(soft)
	}
}
