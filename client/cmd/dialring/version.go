package main

import (
	"cmp"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is set where the sources are no module of a version, as in the image's build:
// -ldflags "-X main.version=1.2.3". Go itself knows all others.
var version string

// build is what is known of this program.
type build struct {
	Version  string `json:"version"`
	Commit   string `json:"commit,omitempty"`
	Modified bool   `json:"modified,omitempty"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func buildOf(info *debug.BuildInfo) build {
	b := build{Version: "(devel)", Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	if info != nil && info.Main.Version != "" {
		b.Version = info.Main.Version
	}
	b.Version = cmp.Or(version, b.Version)
	if info == nil {
		return b
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Commit = s.Value
		case "vcs.modified":
			b.Modified = s.Value == "true"
		}
	}
	return b
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Tell which version this is",
		RunE: func(*cobra.Command, []string) error {
			info, _ := debug.ReadBuildInfo()
			b := buildOf(info)
			if a.asJSON() {
				return a.printJSON(b)
			}
			commit := ""
			if b.Commit != "" {
				commit = " " + b.Commit[:min(12, len(b.Commit))]
			}
			if b.Modified {
				commit += " (modified)"
			}
			return a.print(fmt.Sprintf("dialring %s%s %s %s\n", b.Version, commit, b.Go, b.Platform))
		},
	}
}
