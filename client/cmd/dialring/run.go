package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
)

// app is one call of the command: its surroundings, and the settings of all commands.
type app struct {
	env    func(string) string
	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer

	locators []string
	keyFile  string
	output   string
	timeout  time.Duration

	transport *http.Transport // of all requests
	started   bool            // a command is; what is wrong before is wrong usage

	mu sync.Mutex // a line of stderr at a time
}

const about = `dialring talks to a dialring cluster through its locators: as a user (listen), as a
service (push, where, kick), as an operator (ring, plan, drain), and as many users
and services at once (load). It makes keys, too: of services (key), and of a cluster's
processes (cluster-key, node-key).

Output is for people on a terminal, and JSON where stdout is none (or with -o json):
what the API answers, with the names of /v1/openapi.json, one document a line.
Everything else goes to stderr. NO_COLOR is heeded.

Environment:
  DIALRING_CLI_LOCATOR  locators, separated by commas (--locator wins)
  DIALRING_CLI_API_KEY  key of a service (--api-key-file wins). There is no flag for
                        the key itself: ps would show it. When all locators are on
                        loopback it is "dev", which development mode takes
  DIALRING_CLI_TOKEN    a user's token, for listen
  DIALRING_CLI_CLUSTER_KEY  the key of a cluster, for node-key (--cluster-key-file wins)

Exit codes:
  0    done
  1    failed: refused by the cluster, or messages were lost
  2    wrong usage; nothing was sent
  3    no locator could be reached
  4    not accepted now (429, 502, 503, 504): try again
  130  interrupted`

// run is the whole command; it returns the exit code.
func run(ctx context.Context, args []string, env func(string) string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{env: env, stdin: stdin, stdout: stdout, stderr: stderr, transport: http.DefaultTransport.(*http.Transport).Clone()}
	defer a.transport.CloseIdleConnections()
	root := a.root()
	root.SetArgs(append([]string{}, args...)) // of nil cobra makes those of the process
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitDone
	}
	code := exitUsage
	if a.started {
		code = codeOf(ctx, err)
	}
	switch text := a.explain(err, code); {
	case code == exitInterrupted:
		a.say("interrupted")
	case code == exitUsage:
		a.say("%s\n%s --help says more", text, cmd.CommandPath())
	case text != "":
		a.say("%s", text)
	}
	return code
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use: "dialring", Short: "Talk to a dialring cluster", Long: about,
		SilenceErrors: true, SilenceUsage: true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("there is no command %q", args[0])
			}
			return nil
		},
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	f := root.PersistentFlags()
	f.StringSliceVar(&a.locators, "locator", nil, "URLs of `locators`, separated by commas (default $DIALRING_CLI_LOCATOR, else "+defaultLocator+")")
	f.StringVar(&a.keyFile, "api-key-file", "", "`file` with the API key (default $DIALRING_CLI_API_KEY)")
	f.StringVarP(&a.output, "output", "o", "auto", "json, table, or auto: a table on a terminal, else JSON")
	f.DurationVar(&a.timeout, "timeout", usualTimeout, "how long one call to the cluster may take, retries included; not for listen")
	root.AddCommand(a.listenCommand(), a.pushCommand(), a.whereCommand(), a.kickCommand(),
		a.ringCommand(), a.planCommand(), a.drainCommand(), a.loadCommand(), a.keyCommand(), a.clusterKeyCommand(), a.nodeKeyCommand(), a.versionCommand())
	for _, c := range root.Commands() {
		a.prepare(c)
	}
	strict(root)
	a.complete(root)
	return root
}

// prepare has a command check what all have in common.
func (a *app) prepare(c *cobra.Command) {
	if c.Args == nil {
		c.Args = nothing
	}
	do := c.RunE
	c.RunE = func(c *cobra.Command, args []string) error {
		a.started = true
		if a.timeout <= 0 {
			return usagef("--timeout is %s; it must be more than 0", a.timeout)
		}
		switch a.output {
		case "auto", "json", "table":
			return do(c, args)
		}
		return usagef("--output is %q; it can be json, table or auto", a.output)
	}
}

// nothing refuses arguments.
func nothing(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("%s takes no argument, and there is %q", c.CommandPath(), args[0])
	}
	return nil
}

// just refuses all but one argument.
func just(what, example string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) != 1 {
			return fmt.Errorf("%s takes one %s, and there are %d: say %s %s", c.CommandPath(), what, len(args), c.CommandPath(), example)
		}
		return nil
	}
}

// say writes a line of the command's own to stderr.
func (a *app) say(format string, args ...any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	_, _ = fmt.Fprintln(a.stderr, "dialring: "+clean(strings.TrimPrefix(fmt.Sprintf(format, args...), "dialring: "), '\n'))
}
