// Command locator runs one locator of a dialring cluster. -h lists its settings.
package main

import (
	"context"
	"log/slog"
	"os"

	"github.com/dialring/dialring/internal/config"
	"github.com/dialring/dialring/locator"
)

const about = "locator tells clients which node owns their user, and carries pushes there."

func main() {
	os.Exit(config.Main(about, os.Args[1:], os.Stdout, os.Stderr,
		func(c *locator.Config) (level, format string) { return c.LogLevel, c.LogFormat },
		func(ctx context.Context, c locator.Config, log *slog.Logger) error {
			c.Log = log
			l, err := locator.New(c)
			if err != nil {
				return err
			}
			go config.TuneGC(ctx)
			return l.Run(ctx)
		}))
}
