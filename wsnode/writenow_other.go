//go:build !unix

package wsnode

// writeNow leaves all writing to the session's writer.
func (c *lingering) writeNow([]byte) (int, error) { return 0, nil }
