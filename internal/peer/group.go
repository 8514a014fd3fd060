package peer

// GroupKey is what the ring hashes for a group: no user's id.
func GroupKey(group string) string { return "\x00group\x00" + group }

// GroupChange is the body of an OpGroupChange.
type GroupChange struct {
	Group  string   `json:"group"`
	Add    []string `json:"add,omitempty"`
	Remove []string `json:"remove,omitempty"`
}

// GroupMembers is the body of an OpGroupMembers: members behind After, in order, at most
// Limit. The answer has them in Members, and how many there are in all.
type GroupMembers struct {
	Group   string   `json:"group"`
	After   string   `json:"after,omitempty"`
	Limit   int      `json:"limit"`
	Members []string `json:"members,omitempty"`
	Total   int      `json:"total"`
}

// GroupPush is the body of an OpGroupPush: a push to members behind After, in order, at
// most Limit of them.
type GroupPush struct {
	Group   string `json:"group"`
	After   string `json:"after,omitempty"`
	Limit   int    `json:"limit"`
	Durable bool   `json:"durable"`
	TTLMS   int64  `json:"ttl_ms,omitempty"`
	Key     string `json:"key,omitempty"`
	JSON    bool   `json:"json,omitempty"` // whether Body is
	Body    []byte `json:"body,omitempty"`
}

// GroupPushed is the answer to it.
type GroupPushed struct {
	Next      string        `json:"next,omitempty"` // the last member that it was about, if there are more
	Members   int           `json:"members"`        // that it was about
	Stored    int           `json:"stored"`
	Delivered int           `json:"delivered"`
	Failed    []GroupFailed `json:"failed,omitempty"`
}

// GroupFailed is a member whose push was not accepted.
type GroupFailed struct {
	User   string `json:"user"`
	Code   string `json:"code"`
	Detail string `json:"detail"`
}
