//! The rows of a large catalog, made from numbers alone.
//!
//! **What.** Image `n`, location `n`, copy `j` of a content, row `n` of the log: each is a function of its number, so that every
//! run and both engines have the same catalog, and nothing has to be remembered while it is written.
//! **Why these spreads.** Most images are active, private, Linux; names are Chinese, Latin and numbers mixed; few contents are
//! on every host and most on a few: what is rare and what is common differ by a thousand, as in a real cloud.
//! **Invariants.** No name repeats within a project. An image that shares its content shares it with the image before it.

use hearth_protocol::digest::ContentId;
use hearth_protocol::id::ImageId;

pub(crate) const IMAGES: u64 = 100_000;
pub(crate) const DOMAINS: u64 = 4;
pub(crate) const PROJECTS: u64 = 60;
pub(crate) const LOCATIONS: u64 = 2_000;
pub(crate) const ENTRIES: u64 = 1_000_000;
/// Contents that are cached anywhere.
pub(crate) const CACHED: u64 = 10_000;
pub(crate) const OPERATIONS: u64 = 1_000_000;
/// One entry in so many has an intent.
pub(crate) const ENTRIES_PER_INTENT: u64 = 20;

/// 2026-11-20: the newest row; the oldest is two years older.
const END_US: u64 = 1_795_132_800_000_000;
const SPAN_US: u64 = 2 * 365 * 86_400 * 1_000_000;

/// A number that looks random and is always the same: `what` tells one use from another.
pub(crate) fn pick(what: u64, n: u64, below: u64) -> u64 {
    // SplitMix64's finisher: every bit of the result depends on every bit of both.
    let mut x = n.wrapping_add(what.wrapping_mul(0x9E37_79B9_7F4A_7C15)).wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    (x ^ (x >> 31)) % below
}

/// Time of row `n` of `of`, microseconds since 1970.
pub(crate) fn time_us(n: u64, of: u64) -> u64 {
    END_US - SPAN_US + SPAN_US / of * n
}

/// A UUID of version 7 that was made at `time_us`; `kind` tells tables apart.
pub(crate) fn id(kind: u64, n: u64, time_us: u64) -> String {
    let mut bytes = [0; 16];
    bytes[..6].copy_from_slice(&(time_us / 1000).to_be_bytes()[2..]);
    // Within a millisecond ids go up with n.
    bytes[6..8].copy_from_slice(&(0x7000 | u16::try_from(time_us % 1000).unwrap_or(0)).to_be_bytes());
    bytes[8..].copy_from_slice(&pick(kind, n, u64::MAX).to_be_bytes());
    bytes[8] = 0x80 | (bytes[8] & 0x3F);
    ImageId::from_bytes(bytes).to_string()
}

pub(crate) fn domain(n: u64) -> String {
    id(1, n, time_us(0, 1))
}

pub(crate) fn project(n: u64) -> String {
    id(2, n, time_us(0, 1))
}

/// Domain of a project.
pub(crate) fn domain_of(project: u64) -> u64 {
    project % DOMAINS
}

pub(crate) fn location(n: u64) -> String {
    id(3, n, time_us(0, 1) + n)
}

pub(crate) fn location_name(n: u64) -> String {
    format!("kvm-{}-{:04}", zone(n), n)
}

pub(crate) fn zone(n: u64) -> String {
    format!("z{:02}", n % 40)
}

/// Identity of content `n`: that of image `n`.
pub(crate) fn content(n: u64) -> String {
    ContentId::of(format!("content {n}").as_bytes()).to_string()
}

/// An image.
pub(crate) struct Image {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) project: u64,
    pub(crate) kind: &'static str,
    pub(crate) format: &'static str,
    pub(crate) status: &'static str,
    pub(crate) visibility: &'static str,
    pub(crate) os_type: &'static str,
    pub(crate) distribution: &'static str,
    pub(crate) version: &'static str,
    pub(crate) architecture: &'static str,
    /// Number of its content.
    pub(crate) content: Option<u64>,
    pub(crate) virtual_bytes: u64,
    pub(crate) created_us: u64,
}

/// Distribution, versions and OS type.
const SYSTEMS: [(&str, [&str; 3], &str); 10] = [
    ("Ubuntu", ["20.04 LTS", "22.04 LTS", "24.04 LTS"], "linux"),
    ("CentOS", ["7.9", "8-Stream", "9-Stream"], "linux"),
    ("Debian", ["11", "12", "13"], "linux"),
    ("Rocky Linux", ["8.10", "9.4", "9.5"], "linux"),
    ("openEuler", ["20.03", "22.03 LTS", "24.03 LTS"], "linux"),
    ("Anolis OS", ["7.9", "8.8", "23"], "linux"),
    ("麒麟", ["V10", "V10 SP2", "V10 SP3"], "linux"),
    ("统信 UOS", ["20", "20 1060", "25"], "linux"),
    ("Windows Server", ["2016", "2019", "2022"], "windows"),
    ("FreeBSD", ["13.3", "14.0", "14.1"], "other"),
];
const USES: [&str; 16] = [
    "基础镜像",
    "数据库 MySQL 8.0",
    "测试环境",
    "生产环境",
    "容器节点",
    "大数据 Hadoop",
    "GPU 训练",
    "办公桌面",
    "base",
    "web nginx",
    "redis-cluster",
    "build runner",
    "golden",
    "k8s-node",
    "postgres 16",
    "vdi",
];
const TEAMS: [&str; 12] = [
    "研发部",
    "财务部",
    "平台组",
    "运维中心",
    "电商事业部",
    "华东区",
    "infra",
    "payments",
    "search",
    "data-lab",
    "qa",
    "edge",
];

impl Image {
    pub(crate) fn new(n: u64) -> Self {
        let created_us = time_us(n, IMAGES);
        let (distribution, versions, os_type) =
            SYSTEMS[usize::try_from(pick(11, n, 14)).unwrap_or(0) % SYSTEMS.len()];
        let version = versions[usize::try_from(pick(12, n, 3)).unwrap_or(0)];
        let usage = USES[usize::try_from(pick(13, n, 16)).unwrap_or(0)];
        let team = TEAMS[usize::try_from(pick(14, n, 12)).unwrap_or(0)];
        let architecture = if pick(15, n, 8) == 0 { "aarch64" } else { "x86_64" };
        let name = match pick(16, n, 4) {
            0 => format!(
                "{team} {distribution} {version} {usage} v{}.{}-{n:05}",
                pick(17, n, 9),
                pick(18, n, 30)
            ),
            1 => format!("{distribution}-{version}-{architecture}-{usage}-{n:05}"),
            2 => format!("{usage} {distribution} {version} {n:05}"),
            _ => format!("{team}-{usage}-2026{:02}{:02}-{n:05}", 1 + pick(19, n, 12), 1 + pick(20, n, 28)),
        };
        let status = match pick(21, n, 1000) {
            0..920 => "active",
            920..950 => "killed",
            950..965 => "queued",
            965..970 => "importing",
            970..990 => "deactivated",
            _ => "deleted",
        };
        let visibility = match pick(22, n, 100) {
            0..3 => "public",
            3..7 => "shared",
            _ => "private",
        };
        // Some projects are large and most are small.
        let share = pick(23, n, 1000);
        let project = share * share / 1000 * PROJECTS / 1000;
        let kind = if pick(24, n, 16) == 0 { "iso" } else { "disk" };
        let format = if kind == "iso" {
            "iso"
        } else {
            ["qcow2", "qcow2", "raw", "vmdk"][usize::try_from(pick(25, n, 4)).unwrap_or(0)]
        };
        let has_content = matches!(status, "active" | "deactivated");
        let content = has_content.then(|| if n % 10 == 3 && is_stored(n - 1) { n - 1 } else { n });
        let virtual_bytes = (2 + pick(26, n, 200)) << 30;
        Self {
            id: image_id(n),
            name,
            project,
            kind,
            format,
            status,
            visibility,
            os_type,
            distribution,
            version,
            architecture,
            content,
            virtual_bytes,
            created_us,
        }
    }
}

pub(crate) fn image_id(n: u64) -> String {
    id(4, n, time_us(n, IMAGES))
}

/// What is said of image `n`.
pub(crate) fn description(n: u64) -> String {
    let purpose = USES[usize::try_from(pick(27, n, 16)).unwrap_or(0)];
    format!("第 {n} 次构建 build {n}, {purpose}, owner {}", who(n))
}

/// When image `n` last changed: most were edited at some time after they were made.
pub(crate) fn updated_us(n: u64) -> u64 {
    let created_us = time_us(n, IMAGES);
    created_us + pick(28, n, END_US - created_us + 1)
}

/// Tags: a common one, one in a hundred, one of its own kind.
pub(crate) fn tags(n: u64) -> Vec<String> {
    let mut tags = vec![format!("team-{}", pick(29, n, 12))];
    if pick(30, n, 100) == 0 {
        tags.push("golden".to_owned());
    }
    tags
}

/// What it was built to run on: mostly KVM, some unknown, one in five hundred VMware.
pub(crate) fn virtualisation(n: u64) -> &'static str {
    match pick(33, n, 1000) {
        0..800 => "kvm",
        800..998 => "",
        _ => "vmware",
    }
}

/// Whether image `n` brought a content of its own.
fn is_stored(n: u64) -> bool {
    matches!(pick(21, n, 1000), 0..920 | 970..990)
}

/// Locations that hold the content with this rank among the cached ones: few are everywhere, most at a few.
pub(crate) fn copies(rank: u64) -> u64 {
    match rank {
        0..100 => LOCATIONS,
        100..500 => 800,
        500..2_000 => 200,
        _ => 22 + rank % 2,
    }
}

/// Location of copy `j` of the content with this rank.
pub(crate) fn copy_at(rank: u64, j: u64) -> u64 {
    // 7 and 2,000 have no factor in common: no location comes twice.
    (pick(31, rank, LOCATIONS) + j * 7) % LOCATIONS
}

/// What the agent says of a copy.
pub(crate) fn copy_status(rank: u64, j: u64) -> &'static str {
    match pick(32, rank * LOCATIONS + j, 10_000) {
        0..9_200 => "active",
        9_200..9_500 => "caching",
        9_500..9_700 => "queued",
        9_700..9_850 => "verifying",
        9_850..9_977 => "cache_fail",
        9_977..9_997 => "deleting",
        _ => "delete_failed",
    }
}

/// Who acted in row `n` of the log: few did much.
pub(crate) fn who(n: u64) -> String {
    let share = pick(41, n, 1000);
    format!("user-{:02}", share * share / 1000 * 50 / 1000)
}

/// Numbers of the images whose contents are cached; the place in this list is the slot of the content.
pub(crate) fn cached() -> Vec<u64> {
    // Spread over the catalog, so that new and old images are among them.
    let step = IMAGES / CACHED;
    let own = |n: &u64| Image::new(*n).content == Some(*n);
    (0..CACHED).filter_map(|slot| (0..step).map(|j| slot * step + (slot + j) % step).find(own)).collect()
}

/// Rank of a slot, shuffled: the images that are everywhere are not the oldest.
pub(crate) fn rank(slot: u64) -> u64 {
    slot * 3_989 % CACHED
}

/// An image with a copy at every location.
pub(crate) fn image_cached_everywhere() -> String {
    let everywhere =
        (0..).zip(cached()).find(|(slot, n)| rank(*slot) == 7 && Image::new(*n).status == "active");
    image_id(everywhere.map_or(0, |(_, n)| n))
}

/// The largest project: one image in eight.
pub(crate) const PROJECT_LARGE: u64 = 0;

/// The project of the member that asks; it has about one image in a hundred.
pub(crate) const PROJECT_OF_MEMBER: u64 = 30;

/// An active image of that project.
pub(crate) fn own_image() -> String {
    let own = |n: &u64| {
        let image = Image::new(*n);
        image.project == PROJECT_OF_MEMBER && image.status == "active"
    };
    image_id((0..IMAGES).rev().find(own).unwrap_or(0))
}
