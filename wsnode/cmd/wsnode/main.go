// Command wsnode runs one node of a dialring cluster. -h lists its settings.
package main

import (
	"context"
	"log/slog"
	"os"

	"github.com/dialring/dialring/internal/config"
	"github.com/dialring/dialring/wsnode"
)

const about = "wsnode holds the WebSocket sessions of the users that the ring gives it."

func main() {
	os.Exit(config.Main(about, os.Args[1:], os.Stdout, os.Stderr,
		func(c *wsnode.Config) (level, format string) { return c.LogLevel, c.LogFormat },
		func(ctx context.Context, c wsnode.Config, log *slog.Logger) error {
			c.Log = log
			n, err := wsnode.New(c)
			if err != nil {
				return err
			}
			config.KeepMemory(n.MemoryLimit())
			go config.TuneGC(ctx)
			return n.Run(ctx)
		}))
}
