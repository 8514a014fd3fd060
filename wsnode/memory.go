package wsnode

import (
	"context"
	"math"
	"runtime/debug"
	gometrics "runtime/metrics"
	"sync/atomic"
	"time"

	"github.com/dialring/dialring/internal/config"
)

// memory knows how much of it the process holds. Above the limit the node takes no more
// sessions, before the kernel ends them all: pushes and the sessions that there are go on,
// bounded as they are by limits of their own.
//
//	room --holds more than the limit--> full --nineteen twentieths of it, or less--> room
type memory struct {
	limit int64 // bytes; set by Run
	held  atomic.Int64
	full  atomic.Bool
}

// memoryLimit is the MEMORY_LIMIT that a node goes by: 0 becomes three quarters of what the
// machine or the control group has, the rest is the kernel's for sockets, and -1, or 0 where
// that is not known, becomes no limit.
func (c *Config) memoryLimit() int64 {
	switch {
	case c.MemoryLimit > 0:
		return int64(c.MemoryLimit)
	case c.MemoryLimit == 0:
		if m := config.MachineMemory(); m > 0 {
			return m / 4 * 3
		}
	}
	return math.MaxInt64
}

// queueLimit is the NODE_QUEUE_BYTES that a node goes by, with a limit of memory.
func (c *Config) queueLimit(memory int64) int64 {
	switch {
	case c.NodeQueueBytes > 0:
		return int64(c.NodeQueueBytes)
	case memory < math.MaxInt64:
		return max(memory/4, int64(c.SessionQueueBytes))
	}
	return 1 << 30
}

// Of what the process has from the system, and has given back: the kernel counts it alike,
// but for the sockets' buffers.
var memoryMetrics = []string{"/memory/classes/total:bytes", "/memory/classes/heap/released:bytes"}

func heldMemory() int64 {
	s := []gometrics.Sample{{Name: memoryMetrics[0]}, {Name: memoryMetrics[1]}}
	gometrics.Read(s)
	return int64(s[0].Value.Uint64() - s[1].Value.Uint64()) // #nosec G115 -- bytes of memory
}

const (
	memoryLook = time.Second
	// memoryCollect is how often garbage is looked for while memory is full: nobody else may.
	memoryCollect = 5 * time.Second
)

// watchMemory looks at the memory until ctx ends.
func (n *Node) watchMemory(ctx context.Context) {
	t := time.NewTicker(memoryLook)
	defer t.Stop()
	var collected time.Time
	for {
		n.lookAtMemory(heldMemory())
		if n.memory.full.Load() && time.Since(collected) >= memoryCollect {
			debug.FreeOSMemory()
			collected = time.Now()
			n.lookAtMemory(heldMemory())
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

func (n *Node) lookAtMemory(held int64) {
	m := &n.memory
	m.held.Store(held)
	switch full := m.full.Load(); {
	case !full && held > m.limit:
		m.full.Store(true)
		n.log.Warn("this process holds more memory than its limit; no more sessions are taken", "event", "memory_full", "held", held, "limit", m.limit)
	case full && held <= m.limit/20*19:
		m.full.Store(false)
		n.log.Info("there is memory again; sessions are taken", "event", "memory_room", "held", held, "limit", m.limit)
	}
}

// MemoryLimit is how many bytes of memory the process may hold before the node takes no
// more sessions, by Config.MemoryLimit and what the machine has; math.MaxInt64: no limit.
func (n *Node) MemoryLimit() int64 { return n.cfg.memoryLimit() }
